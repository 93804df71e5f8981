"""Adapters under Lightning's `FSDPStrategy` (FSDP1): the base is sharded, each process holds the whole adapter.

FSDP1 puts the parameters of a block into a flat one, of one dtype, in which they lose their shapes. What is trained
stays out of it, and is treated as DDP would: every process starts with the adapter of the first, and gradients are
averaged before the optimizer steps. So optimizer, clipping and checkpoints are those of a single process, while
Lightning's own would refuse to clip, and gather the whole base to save.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import FSDPStrategy, Strategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn

from pera_lightning.callback.strategies.checkpoint_objects import plain_values_alone
from pera_lightning.callback.strategies.model_parallel import fitting_checkpoint, refuse_folder, stop_checking
from pera_lightning.callback.strategies.strategy_limits import refuse_quantized
from pera_lightning.checkpoint import Manifest, adapter_state_dict
from pera_lightning.checkpoint.adapter_state import copy_into
from pera_lightning.errors import InjectionError
from pera_lightning.injection import adapter_layers, adapter_parameters, saved_modules
from pera_lightning.models.parallel.parallel_causal_lm import blocks
from pera_lightning.storage.remote import place

# On the module: what Lightning wrapped it in, which its own modules do not lead to.
_ROOT = "_pera_fsdp_root"
# On the strategy: its options as they were.
_OPTIONS = "_pera_fsdp_options"


def is_fsdp(trainer: pl.Trainer) -> bool:
    """Whether the Trainer's strategy is FSDP1."""
    return isinstance(getattr(trainer, "strategy", None), FSDPStrategy)


def is_flattened(module: nn.Module) -> bool:
    """Whether FSDP1 has taken the shapes of a module's weights."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    return _ROOT in vars(module) or any(isinstance(part, FullyShardedDataParallel) for part in module.modules())


def refuse_unfit_module(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    """Raise before anything is changed in a module that FSDP1 cannot wrap, or has wrapped for another run.

    Raises:
        InjectionError: The layers have lost their weights, or have none yet.
        ConfigError: The base is quantised.
    """
    refuse_quantized(trainer, pl_module)
    if is_flattened(pl_module) and not (is_fsdp(trainer) and _ROOT in vars(pl_module)):
        raise InjectionError(
            "FSDP1 has taken the shapes of the layers' weights, which adapters are fitted to.",
            got=f"a module wrapped in FullyShardedDataParallel, under {type(trainer.strategy).__name__}",
            expected="a module that is wrapped when the adapters are in it, by the FSDPStrategy of this run",
            fix="leave wrapping to Lightning (FSDPStrategy(auto_wrap_policy=...)); after a fit under FSDPStrategy make "
            "the module anew and load the adapter folder into it",
        )
    if is_fsdp(trainer) and any(parameter.is_meta for parameter in pl_module.parameters()):
        raise InjectionError(
            "The base has no weights yet; FSDP1 would draw them at random.",
            got="parameters on the meta device under FSDPStrategy",
            expected="a base that is loaded in each process",
            fix="leave out init_module(empty_init=True), or use --config configs/strategies/fsdp2.yaml, under which "
            "only the first process loads the weights of a PeraCausalLM",
        )


def keep_adapter_whole(trainer: pl.Trainer, pl_module: pl.LightningModule, present: Manifest) -> None:
    """Have FSDP1 shard the base alone, and checkpoints hold the adapter alone. Collective.

    Args:
        trainer: The Trainer; under other strategies nothing is done.
        pl_module: The module with its adapters, before the strategy wraps it.
        present: Of its adapter.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, FSDPStrategy):
        return
    options = strategy.__dict__.setdefault(_OPTIONS, strategy.kwargs)
    if _ROOT in vars(pl_module):
        # An earlier run has wrapped the module; Lightning would do without what wraps it as a whole.
        strategy.model = vars(pl_module)[_ROOT]
        strategy.kwargs = {name: value for name, value in options.items() if name != "auto_wrap_policy"}
    else:
        _start_alike(pl_module, strategy.root_device)
        strategy.kwargs = {**_wrap_blocks(pl_module), **options, "ignored_states": list(adapter_parameters(pl_module))}
    _compute_as_one_process(strategy)
    _save_and_load_as_one_process(trainer, pl_module, present)


def restore_options(trainer: pl.Trainer) -> None:
    """Give the strategy its options back, as they name parameters of this run's module."""
    strategy: Any = trainer.strategy
    if _OPTIONS in vars(strategy):
        strategy.kwargs = strategy.__dict__.pop(_OPTIONS)


def check_wrapping(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    """Look at what Lightning has made of the module, and keep it for later runs.

    Raises:
        InjectionError: The user's policy wraps layers below adapters.
    """
    from torch.distributed.fsdp import FullyShardedDataParallel

    if not is_fsdp(trainer):
        return
    pl_module.__dict__[_ROOT] = trainer.strategy.model
    wrapped = [
        name for name, layer in adapter_layers(pl_module) if isinstance(layer.base_layer, FullyShardedDataParallel)
    ]
    if wrapped:
        raise InjectionError(
            "A layer below an adapter was wrapped by itself, which hides it from the adapter.",
            got=f"an auto_wrap_policy that wraps {len(wrapped)} adapted layers, e.g. {wrapped[0]!r}",
            expected="a policy that wraps blocks of the model",
            fix="leave auto_wrap_policy out (the blocks of a transformer are found), or name the class of the blocks",
        )


@torch.no_grad()
def average_gradients(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    """Under FSDP1, give every process the mean of all gradients, and the first one's buffers. Collective."""
    if not is_fsdp(trainer) or trainer.world_size == 1:
        return
    trained = list(dict.fromkeys(value for value in adapter_parameters(pl_module) if value.requires_grad))
    for dtype in dict.fromkeys(value.dtype for value in trained):
        _average([value for value in trained if value.dtype == dtype], trainer.world_size)
    for _, module in saved_modules(pl_module):
        for buffer in module.buffers():
            torch.distributed.broadcast(buffer, src=0)


def _average(parameters: list[nn.Parameter], processes: int) -> None:
    """One message for all. A parameter without a gradient counts as zero, if another process has one."""
    gradients = [torch.zeros_like(value) if value.grad is None else value.grad for value in parameters]
    found = gradients[0].new_ones(len(parameters))
    missing = [index for index, value in enumerate(parameters) if value.grad is None]
    for index in missing:
        found[index] = 0
    flat = torch.cat([*(gradient.flatten() for gradient in gradients), found])
    torch.distributed.all_reduce(flat)
    *means, found = flat.div_(processes).split([*(value.numel() for value in parameters), len(parameters)])
    # Only where this process has none it matters whether another has; to ask makes a GPU wait.
    nowhere = {index for index, share in enumerate(found.tolist()) if share == 0} if missing else set()
    for index, (value, gradient, mean) in enumerate(zip(parameters, gradients, means, strict=True)):
        if index not in nowhere:
            value.grad = gradient.copy_(mean.view_as(gradient))


@torch.no_grad()
def _start_alike(pl_module: pl.LightningModule, device: torch.device) -> None:
    # FSDP1 moves only what it shards, and does not compare start values.
    for parameter in adapter_parameters(pl_module):
        parameter.data = parameter.data.to(device)
        torch.distributed.broadcast(parameter.data, src=0)


def _wrap_blocks(pl_module: pl.LightningModule) -> dict[str, Any]:
    """The default policy: each block of the model by itself; without any, the whole base would be gathered at once."""
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    below = {type(layer.base_layer) for _, layer in adapter_layers(pl_module)}
    classes = {type(block) for block in blocks(pl_module)} - below
    return {"auto_wrap_policy": ModuleWrapPolicy(classes)} if classes else {}


def _compute_as_one_process(strategy: FSDPStrategy) -> None:
    """Keep weights and buffers as they are, under the Trainer's autocast; and clip, where Lightning refuses to.

    By default Lightning casts a bf16 base up under the precision 32-true, and positions' frequencies down under bf16.
    """
    from torch.distributed.fsdp import MixedPrecision

    if strategy.mixed_precision is None:
        strategy.mixed_precision = MixedPrecision()
    plugin = strategy.precision_plugin
    # It expects parameters that are in parts.
    plugin.__dict__["clip_grad_by_norm"] = partial(Precision.clip_grad_by_norm, plugin)
    if plugin.precision == "32-true":
        plugin.__dict__["convert_module"] = partial(Precision.convert_module, plugin)


def _save_and_load_as_one_process(trainer: pl.Trainer, pl_module: pl.LightningModule, present: Manifest) -> None:
    strategy = trainer.strategy

    def load_checkpoint(checkpoint_path: str | Path, **options: Any) -> dict[str, Any]:
        stop_checking(trainer)
        path = strategy.broadcast(checkpoint_path)
        refuse_folder(place(path))
        fitting_checkpoint(path, pl_module, present)
        with plain_values_alone(path, options):
            checkpoint = Strategy.load_checkpoint(strategy, path, **options)
        copy_into(pl_module, checkpoint["state_dict"])
        if trainer.state.fn == TrainerFn.FITTING and "optimizer_states" in checkpoint:
            Strategy.load_optimizer_state_dict(strategy, checkpoint)
        return checkpoint

    strategy.__dict__["load_checkpoint"] = load_checkpoint
    # These stay when the run has ended: a checkpoint may be saved after it.
    strategy.__dict__["lightning_module_state_dict"] = lambda: adapter_state_dict(pl_module)
    strategy.__dict__["optimizer_state"] = partial(Strategy.optimizer_state, strategy)
