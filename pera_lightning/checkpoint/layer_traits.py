"""What an adapter file says of layers that are no plain linear ones, for exports that never see the model."""

from __future__ import annotations

from collections import Counter

from torch import nn

from pera_lightning.injection import original_names, saved_modules
from pera_lightning.layers import PeraEmbedding, PeraLinear

EMBEDDING = "embedding"
CONV1D = "conv1d"
"""The weight is stored as (in, out), as in GPT-2."""
TIED = "tied"
"""The weight of the base, or of a module saved whole, belongs to another module too."""


def layer_traits(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Adapted layer or module saved whole -> what sets it apart; those with nothing of the kind are left out."""
    modules = list(original_names(model))
    owners = Counter(id(module._parameters.get("weight")) for _, module in modules)
    found = {name: _traits(layer, owners) for name, layer in modules if isinstance(layer, PeraLinear)}
    return {name: traits for name, traits in found.items() if traits} | _tied_saved_modules(model)


def _traits(layer: PeraLinear, owners: Counter[int]) -> tuple[str, ...]:
    base = layer.base_layer
    kind = type(base).__name__ if layer.quantization is None else getattr(base, "source_cls", nn.Linear).__name__
    traits = {
        EMBEDDING: isinstance(layer, PeraEmbedding),
        CONV1D: kind == "Conv1D",
        TIED: owners[id(base.weight)] > 1,
    }
    return tuple(name for name, holds in traits.items() if holds)


def _tied_saved_modules(model: nn.Module) -> dict[str, tuple[str, ...]]:
    saved = dict(saved_modules(model))
    inside = {id(part) for module in saved.values() for part in module.modules()}
    others = [module for module in model.modules() if id(module) not in inside]
    outside = {id(value) for module in others for value in module._parameters.values() if value is not None}
    return {name: (TIED,) for name, module in saved.items() if any(id(v) in outside for v in module.parameters())}
