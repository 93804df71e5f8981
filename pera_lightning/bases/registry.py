"""Which `Base` serves which layer."""

from __future__ import annotations

from torch import nn

from pera_lightning.bases.base import Base
from pera_lightning.bases.conv1d import Conv1DBase
from pera_lightning.bases.dense import DenseBase

BASES: tuple[Base, ...] = (DenseBase(), Conv1DBase())


def base_of(layer: nn.Module) -> Base | None:
    """The `Base` that serves `layer`, or None if no adapter can sit on it."""
    return next((base for base in BASES if base.accepts(layer)), None)


def is_linear_like(layer: nn.Module) -> bool:
    """Whether `layer` calls itself linear, supported or not.

    Layers that are linear but of an unknown kind (a quantised subclass of `nn.Linear`) must be refused by
    name; passing over them in silence would leave them untrained.
    """
    return isinstance(layer, nn.Linear) or base_of(layer) is not None


def describe_supported() -> str:
    """The supported kinds of layers, for messages."""
    return ", ".join(base.name for base in BASES)
