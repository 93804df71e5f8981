"""Taking an adapter out of a model whole, so that it can be put in again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from pera_lightning.base_layers import expect_base
from pera_lightning.errors import InjectionError
from pera_lightning.functional.precision import factor_dtype
from pera_lightning.injection.inject import no_such_module, put_in, set_trainable, take_out, trainable_names
from pera_lightning.injection.saved_modules import Mark, marked_modules, memory_of_saved, put_mark, take_mark
from pera_lightning.injection.shared_memory import SharedMemory
from pera_lightning.injection.targets.names import adapted_layers, adapter_layers, clean_name
from pera_lightning.injection.targets.plan import refuse_adapted
from pera_lightning.injection.targets.token_plan import TokenPlan, present_plans
from pera_lightning.layers import PeraLinear, TokenRowsLayer, stored_weight


@dataclass(frozen=True)
class DetachedAdapter:
    """An adapter without its model: everything it takes to put it in again, by clean names of the model.

    Attributes:
        layers: The adapted layers. What they adapt belongs to the model, and is found there again by name.
        saved: The trained values of modules saved whole and of biases.
        trainable: The parameters that required gradients.
        dtypes: What the bases' weights stood for.
        rows: The layers with trained token rows, also those that share them.
        tokens: Which rows they are.
    """

    layers: dict[str, PeraLinear]
    saved: dict[str, Mark]
    trainable: frozenset[str]
    dtypes: dict[str, torch.dtype]
    rows: dict[str, TokenRowsLayer]
    tokens: dict[str, TokenPlan]

    @property
    def every(self) -> dict[str, PeraLinear | TokenRowsLayer]:
        """All layers that take the place of their bases."""
        return {**self.layers, **self.rows}


def detach_adapter(model: nn.Module) -> DetachedAdapter:
    """Take the adapter out: afterwards the model is what it was before the injection, to the bit. Nothing is copied.

    Raises:
        InjectionError: The adapter is merged or disabled.
    """
    layers = dict(adapted_layers(model))
    rows = {clean_name(name): part for name, part in model.named_modules() if isinstance(part, TokenRowsLayer)}
    tokens = present_plans(model)
    refuse_unsettled(dict(adapter_layers(model)))
    trainable = frozenset(trainable_names(model))
    memory = memory_of_saved(model)
    saved = {name: take_mark(module, memory) for name, module in list(marked_modules(model))}
    take_out(model)
    for layer in layers.values():
        # Forgets the expanded factors, many times the size of the adapter.
        layer.train(layer.training)
    adapter = DetachedAdapter(layers, saved, trainable, {}, rows, tokens)
    adapter.dtypes.update({name: _base_dtype(layer) for name, layer in adapter.every.items()})
    return adapter


def attach_adapter(model: nn.Module, adapter: DetachedAdapter) -> None:
    """Undo `detach_adapter`. The layers follow what happened to their bases meanwhile: mode, device and dtype.

    All or nothing.

    Raises:
        InjectionError: The model holds an adapter.
        TargetError: It has lost a layer of this one.
    """
    refuse_adapted(model)
    modules = modules_of(model, adapter)
    for name, layer in adapter.every.items():
        _follow(layer, modules[name], adapter.dtypes[name])
    put_in(model, {id(layer.base_layer): layer for layer in adapter.every.values()})
    memory = SharedMemory(model) if adapter.saved else None
    put: list[nn.Module] = []
    try:
        # The opposite order of taking out: modules may share tensors.
        for name, mark in reversed(adapter.saved.items()):
            put_mark(modules[owner_of(name, mark)], mark, memory)
            put.append(modules[owner_of(name, mark)])
        set_trainable(model, adapter.trainable)
    except BaseException:
        for module in reversed(put):
            take_mark(module, memory)
        take_out(model)
        raise


def modules_of(model: nn.Module, adapter: DetachedAdapter) -> dict[str, nn.Module]:
    """The modules of a model by their clean names, among them all that the adapter needs.

    Raises:
        TargetError: One is missing.
    """
    modules = {clean_name(name): module for name, module in model.named_modules()}
    for name in (*adapter.every, *(owner_of(name, mark) for name, mark in adapter.saved.items())):
        if name not in modules:
            raise no_such_module(name, modules, adapter.every)
    return modules


def owner_of(name: str, mark: Mark) -> str:
    """Name of the module that a mark belongs to."""
    return name if mark.only is None else name.rpartition(".")[0]


def refuse_unsettled(layers: Mapping[str, PeraLinear | TokenRowsLayer]) -> None:
    """Raise InjectionError if one of the layers is merged or disabled."""
    merged = [name for name, layer in layers.items() if layer.merged]
    disabled = [name for name, layer in layers.items() if not layer.enabled]
    if merged or disabled:
        raise InjectionError(
            "An adapter that is merged or disabled cannot be exchanged.",
            got=f"{len(merged)} merged and {len(disabled)} disabled layers, e.g. {(merged or disabled)[0]!r}",
            expected="an adapter that computes beside its base",
            fix="call unmerge() on the layers first; leave the block of adapter_disabled first",
        )


def _follow(layer: PeraLinear | TokenRowsLayer, base_layer: nn.Module, dtype_before: torch.dtype) -> None:
    """Set a layer on its base, which may have been moved, converted or exchanged since it last sat there."""
    layer.base_layer = base_layer
    layer.train(base_layer.training)
    owner = layer if isinstance(layer, PeraLinear) else layer.token_rows
    present = next(iter(layer.adapter().values()))
    dtype, device = _base_dtype(layer), stored_weight(layer).device
    wanted = present.dtype if dtype == dtype_before else factor_dtype(dtype)
    # A base that is off-loaded between its calls has no memory to follow.
    if device.type != "meta" and (device, wanted) != (present.device, present.dtype):
        owner._apply(lambda tensor: tensor.to(device, wanted if tensor.is_floating_point() else None), recurse=False)


def _base_dtype(layer: PeraLinear | TokenRowsLayer) -> torch.dtype:
    if isinstance(layer, TokenRowsLayer):
        return cast("Tensor", layer.base_layer.weight).dtype
    return expect_base(layer.base_layer).dtype(layer.base_layer)
