"""What a method of PEFT would train or compute otherwise than the others of a comparison, refused before it trains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch import callbacks
from torch import nn

from pera_lightning.base_layers import base_of
from pera_lightning.errors import InjectionError, TrainingError
from pera_lightning.injection import InjectionPlan
from pera_lightning.injection.copies import exact_copies
from pera_lightning.injection.weight_readers import read_by_torch

REWRITING_STARTS = ("pissa", "olora", "orthogonal")
"""Beginnings of the names of starts of LoRA that change the base's weights, or need them as they are."""
# WeightAveraging is not in older versions.
_AVERAGING: Any = (callbacks.StochasticWeightAveraging, getattr(callbacks, "WeightAveraging", ()))


def refuse_averaging(trainer: pl.Trainer) -> None:
    """Raise TrainingError if weights are averaged: the copies of the module that are made for it have no adapters."""
    found = [type(part).__name__ for part in getattr(trainer, "callbacks", ()) if isinstance(part, _AVERAGING)]
    if found:
        raise TrainingError(
            "Weights are not averaged with methods of PEFT.",
            got=f"{found[0]} in the fit",
            expected="a fit without it, or methods of PERA alone",
            fix="leave it out of the config for the comparison",
        )


def refuse_unfit_model(pl_module: pl.LightningModule, plan: InjectionPlan, method: Mapping[str, Any]) -> None:
    """Look at the layers and modules of a plan before PEFT is let to the model.

    Raises:
        InjectionError: PEFT would compute or train something else than PERA does there.
    """
    _refuse_quantized(pl_module, plan, method)
    modules = dict(pl_module.named_modules())
    read = read_by_torch(pl_module)
    _refuse(
        [name for name in plan.layers if id(modules[name]) in read],
        "torch reads the weights of layers itself, past their adapters",
        "of torch's own attention modules",
    )
    _refuse(
        [name for name in exact_copies(pl_module) if any(layer.startswith(f"{name}.") for layer in plan.layers)],
        "the model holds a copy of a network, which PEFT would train as another one",
        "in copies",
    )
    shared = Counter(id(value) for _, value in pl_module.named_parameters(remove_duplicate=False))
    _refuse(
        [name for name in plan.saved if any(shared[id(value)] > 1 for value in modules[name].parameters())],
        "a module saved whole shares its weights with another one, which PEFT does not tie again",
        "in modules_to_save",
    )


def _refuse(found: Sequence[str], why: str, which: str) -> None:
    if found:
        raise InjectionError(
            f"A method of PEFT cannot be compared here: {why}.",
            got=f"{len(found)} {which}, the first is {found[0]}",
            expected="layers and modules that PEFT and PERA adapt alike",
            fix="leave them out for all methods (--pera.exclude_modules, --pera.modules_to_save), or compare methods "
            "of PERA alone",
        )


def _refuse_quantized(pl_module: pl.LightningModule, plan: InjectionPlan, method: Mapping[str, Any]) -> None:
    """Others than LoRA reckon with the weight itself, of which PEFT would take the packed numbers."""
    modules, kind = dict(pl_module.named_modules()), method["peft_type"]
    packed = {name: base.quantization(modules[name]) for name in plan.layers if (base := base_of(modules[name]))}
    packed = {name: stored for name, stored in packed.items() if stored}
    start = method.get("init_lora_weights")
    rewrites = isinstance(start, str) and start.startswith(REWRITING_STARTS)
    eight_bit_dora = bool(method.get("use_dora")) and any("8" in str(stored) for stored in packed.values())
    if packed and (kind != "LORA" or rewrites or eight_bit_dora):
        what = f"{kind} with the start {start}" if rewrites else f"{kind} with use_dora" if eight_bit_dora else kind
        raise InjectionError(
            f"PEFT's {what} is not compared over this base.",
            got=f"{len(packed)} layers in {next(iter(packed.values()))}, the first is {next(iter(packed))}",
            expected="a floating base; or LoRA and rsLoRA over 4 and 8 bits, DoRA over 4",
            fix="leave it out of --methods, or compare over a base that is not quantised",
        )


def refuse_other_parts(
    pl_module: pl.LightningModule, plan: InjectionPlan, own: Sequence[tuple[nn.Module, str]], kind: str
) -> None:
    """Look at what PEFT has done: each layer has an adapter, and nothing else is trained.

    Args:
        pl_module: The module, all of which was frozen before.
        plan: The layers to adapt.
        own: Modules and names of the adapters' tensors.
        kind: PEFT's type.

    Raises:
        InjectionError: Another part would be trained, or a layer passed over.
    """
    adapters = {id(getattr(module, name)) for module, name in own}
    others = [name for name, value in pl_module.named_parameters() if value.requires_grad and id(value) not in adapters]
    untouched = [name for name in plan.layers if not _trains(pl_module.get_submodule(name))]
    if others or untouched:
        raise InjectionError(
            f"PEFT's {kind} adapts other parts of the model than the other methods.",
            got=f"{others[0]} is trained" if others else f"{untouched[0]} is left without an adapter",
            expected=f"adapters in the {len(plan.layers)} layers of the plan, and nothing else that is trained",
            fix="take the option of --methods away that does so, or leave the method out",
        )


def _trains(layer: nn.Module) -> bool:
    return any(value.requires_grad for value in layer.parameters())
