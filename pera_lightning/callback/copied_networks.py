"""A network and its copy in one module: mean teachers, reference models, averages."""

from __future__ import annotations

from collections.abc import Iterable

import lightning.pytorch as pl
from torch import nn
from torch.optim.swa_utils import AveragedModel

from pera_lightning.injection import adapter_layers, clean_name
from pera_lightning.injection.copies import (
    adopt,
    follow,
    followers,
    late_copies,
    noted_copies,
    set_apart,
    start_alike,
)
from pera_lightning.injection.targets.names import own_modules, within_any
from pera_lightning.run_log.messages import rank_zero_info, rank_zero_warn


def settle_copies(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    """Find out which copies are trained: those of which an optimizer has the adapters.

    The others are frozen. They are saved where they were there when the adapters came; later ones could not be loaded.

    Args:
        trainer: With its optimizers.
        pl_module: The module with the adapters.
    """
    groups = (group for optimizer in trainer.optimizers for group in optimizer.param_groups)
    stepped = {id(value) for group in groups for value in group["params"]}
    for name, module in late_copies(pl_module).items():
        if _is_in(module, stepped):
            adopt(module)
            continue
        set_apart(module)
        rank_zero_warn(
            f"PERA: {name!r} is a copy that was made after the adapters came. It is not trained, and not saved: a run "
            "that goes on from a checkpoint begins with another copy. Make it in __init__ or configure_model to have "
            "it in the checkpoints."
        )
    known = dict(followers(pl_module))
    for copy, original in noted_copies(pl_module).items():
        inside = {name: _is_in_any(pl_module, name, stepped) for name in (copy, original)}
        if copy not in known and original not in known and inside[copy] != inside[original]:
            still, moving = (copy, original) if inside[original] else (original, copy)
            follow(pl_module, still, moving)
            known[still] = pl_module
            rank_zero_info(f"PERA: {still!r} is a copy of {moving!r} that no optimizer has: its adapters are frozen")


def _is_in(module: nn.Module, stepped: set[int]) -> bool:
    return any(id(value) in stepped for _, layer in adapter_layers(module) for value in layer.adapter().values())


def _is_in_any(model: nn.Module, name: str, stepped: set[int]) -> bool:
    layers = (layer for path, layer in adapter_layers(model) if within_any(path, [name]))
    return any(id(value) in stepped for layer in layers for value in layer.adapter().values())


def still_copies(pl_module: pl.LightningModule, unreached: Iterable[str]) -> set[str]:
    """Of the layers that a first backward pass has not reached, those of copies, which get the start of the others."""
    unreached, found = set(unreached), set()
    for copy, original in noted_copies(pl_module).items():
        here = {name for name in unreached if within_any(name, [copy])}
        if here and not any(within_any(name, [original]) for name in unreached):
            start_alike(pl_module, copy, original)
            found |= here
    return found


def averaged_counts(pl_module: nn.Module) -> dict[str, int]:
    """How many models each of torch's `AveragedModel`s in a module is the average of."""
    return {name: int(module.n_averaged) for name, module in _averages(pl_module)}


def restore_averaged_counts(pl_module: nn.Module, counts: dict[str, int]) -> None:
    """Put back what `averaged_counts` found: at 0 the next update would overwrite the average."""
    for name, module in _averages(pl_module):
        if name in counts:
            module.n_averaged.fill_(counts[name])


def _averages(pl_module: nn.Module) -> list[tuple[str, AveragedModel]]:
    return [(clean_name(name), part) for name, part in own_modules(pl_module) if isinstance(part, AveragedModel)]
