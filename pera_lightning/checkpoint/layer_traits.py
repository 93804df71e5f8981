"""What an adapter file says of layers that are no plain linear ones, for exports that never see the model."""

from __future__ import annotations

from collections import Counter

from torch import nn

from pera_lightning.injection import original_names
from pera_lightning.layers import PeraEmbedding, PeraLinear

EMBEDDING = "embedding"
CONV1D = "conv1d"
"""The weight is stored as (in, out), as in GPT-2."""
TIED = "tied"
"""The base's weight belongs to another module too."""


def layer_traits(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Adapted layer -> what sets it apart; layers with nothing of the kind are left out."""
    modules = list(original_names(model))
    owners = Counter(id(module._parameters.get("weight")) for _, module in modules)
    found = {name: _traits(layer, owners) for name, layer in modules if isinstance(layer, PeraLinear)}
    return {name: traits for name, traits in found.items() if traits}


def _traits(layer: PeraLinear, owners: Counter[int]) -> tuple[str, ...]:
    base = layer.base_layer
    kind = type(base).__name__ if layer.quantization is None else getattr(base, "source_cls", nn.Linear).__name__
    traits = {
        EMBEDDING: isinstance(layer, PeraEmbedding),
        CONV1D: kind == "Conv1D",
        TIED: owners[id(base.weight)] > 1,
    }
    return tuple(name for name, holds in traits.items() if holds)
