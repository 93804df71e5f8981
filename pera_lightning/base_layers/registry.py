"""Which `Base` serves which layer."""

from __future__ import annotations

from torch import nn

from pera_lightning.base_layers.base import Base
from pera_lightning.base_layers.conv1d import Conv1DBase
from pera_lightning.base_layers.dense import DenseBase
from pera_lightning.base_layers.eight_bit import EightBitBase
from pera_lightning.base_layers.embedding import EmbeddingBase
from pera_lightning.base_layers.four_bit import FourBitBase
from pera_lightning.errors import InjectionError

BASES: tuple[Base, ...] = (FourBitBase(), EightBitBase(), DenseBase(), Conv1DBase(), EmbeddingBase())


def base_of(layer: nn.Module) -> Base | None:
    """The `Base` that serves `layer`, or None if no adapter can sit on it."""
    return next((base for base in BASES if base.accepts(layer)), None)


def expect_base(layer: nn.Module) -> Base:
    """The `Base` that serves a layer which an adapter sits on.

    Raises:
        InjectionError: The layer was exchanged for one that nothing here can read.
    """
    base = base_of(layer)
    if base is None:
        raise InjectionError(
            "The layer below an adapter was exchanged for one that cannot be read.",
            got=f"{type(layer).__module__}.{type(layer).__qualname__}",
            expected=describe_supported(),
            fix="choose another quantisation (of Lightning's BitsandbytesPrecision: not int8-training); take "
            "parametrizations, weight normalisation or pruning off again",
        )
    return base


def is_linear_like(layer: nn.Module) -> bool:
    """Whether `layer` is linear, supported or not.

    Layers that are linear but of an unknown kind (other libraries' quantised layers) must be refused by name; passing
    over them in silence would leave them untrained.
    """
    base = base_of(layer)
    return isinstance(layer, nn.Linear) or (base is not None and base.linear) or _is_packed_linear(layer)


def _is_packed_linear(layer: nn.Module) -> bool:
    """Whether `layer` has a linear layer's sizes and holds packed integers, as GPTQ, AWQ and HQQ layers do."""
    sizes = (getattr(layer, "in_features", None), getattr(layer, "out_features", None))
    own = (*layer.parameters(recurse=False), *layer.buffers(recurse=False))
    packed = any(tensor.dim() > 1 and not tensor.is_floating_point() for tensor in own)
    return all(isinstance(size, int) for size in sizes) and packed


def describe_supported() -> str:
    """The supported kinds of layers, for messages."""
    return ", ".join(base.name for base in BASES)
