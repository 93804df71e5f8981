"""What an adapter file says of layers that are no plain linear ones, for exports that never see the model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import nn

from pera_lightning.injection import original_names, saved_modules
from pera_lightning.injection.shared_memory import SharedMemory
from pera_lightning.injection.weight_readers import read_by_torch
from pera_lightning.layers import PeraEmbedding, PeraLinear, stored_weight

EMBEDDING = "embedding"
CONV1D = "conv1d"
"""The weight is stored as (in, out), as in GPT-2."""
TIED = "tied"
"""The weight of the base, or of a module saved whole, belongs to another module too."""

READ = "read"
"""The model reads the weight instead of calling the layer, always or at times (`nn.MultiheadAttention`'s out_proj)."""

ENDS_ANOTHER = "ends_another"
"""Of a module saved whole: the name of another module ends in its name, as `pre_head` in `head`."""

EXPERT_PART = "expert_part"
"""Named as a part of an expert, in a model whose experts are fused into single tensors: PEFT takes it for one."""
_PARTS = frozenset({"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})
_FUSED = ("gate_up_proj", "down_proj")
# Of the models that PEFT 0.21 does this to; in a model without experts it would be of no harm.
_ARCHITECTURES = re.compile(
    "Moe|MoE|Mixtral|MiniMax|Deepseek|Dots|Longcat|SolarOpen|Mellum|FlexOlmo|Qwen3Next|Beam|Afmoe|Glm4v"
)


def expert_parts(names: Iterable[str], traits: Mapping[str, tuple[str, ...]], architecture: str | None) -> list[str]:
    """The layers that PEFT may take for experts.

    Args:
        names: Of the adapted layers.
        traits: Of them.
        architecture: Class of the model; it decides for adapters that were written before the trait was known, and for
            code of the hub's own, whose experts are layers of their own.
    """
    known = _ARCHITECTURES.search(architecture or "") is not None
    return [name for name in names if EXPERT_PART in traits.get(name, ()) or (known and _is_part(name))]


def _is_part(name: str) -> bool:
    return name.rpartition(".")[2] in _PARTS


def layer_traits(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Adapted layer or module saved whole -> what sets it apart; those with nothing of the kind are left out."""
    modules = list(original_names(model))
    memory, read = SharedMemory(model), read_by_torch(model)
    fused = any(name in module._parameters for _, module in modules for name in _FUSED)
    found = {
        name: _traits(layer, memory, read) + ((EXPERT_PART,) if fused and _is_part(name) else ())
        for name, layer in modules
        if isinstance(layer, PeraLinear)
    }
    found |= {name: _traits_of_saved(name, module, model, memory) for name, module in saved_modules(model)}
    return {name: traits for name, traits in found.items() if traits}


def _traits(layer: PeraLinear, memory: SharedMemory, read: set[int]) -> tuple[str, ...]:
    base = layer.base_layer
    kind = type(base).__name__ if layer.quantization is None else getattr(base, "source_cls", nn.Linear).__name__
    traits = {
        EMBEDDING: isinstance(layer, PeraEmbedding),
        CONV1D: kind == "Conv1D",
        TIED: bool(memory.owners(stored_weight(layer), besides=[base])),
        READ: layer.read_as_weight or id(layer) in read,
    }
    return tuple(name for name, holds in traits.items() if holds)


def _traits_of_saved(name: str, module: nn.Module, model: nn.Module, memory: SharedMemory) -> tuple[str, ...]:
    others = {other for other, _ in original_names(model) if other != name}
    traits = {TIED: _is_tied(module, model, memory), ENDS_ANOTHER: any(other.endswith(name) for other in others)}
    return tuple(trait for trait, holds in traits.items() if holds)


def _is_tied(module: nn.Module, model: nn.Module, memory: SharedMemory) -> bool:
    """Whether a module that is not saved whole has a parameter of one that is, or one over the same memory."""
    inside = [part for _, saved in saved_modules(model) for part in saved.modules()]
    return any(memory.is_outside(value, inside) for value in module.parameters())
