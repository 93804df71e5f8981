"""The contract between an adapter and the frozen layer below it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import cast

import torch
from torch import Tensor, nn


class Base(ABC):
    """How to read and write one kind of frozen linear layer. Stateless; the layer is an argument."""

    name: str
    """What the kind is called in messages."""

    @abstractmethod
    def accepts(self, layer: nn.Module) -> bool:
        """Whether `layer` is of this kind."""

    @abstractmethod
    def features(self, layer: nn.Module) -> tuple[int, int]:
        """`(in_features, out_features)` of the layer."""

    @abstractmethod
    def weight(self, layer: nn.Module) -> Tensor:
        """The weight as a floating tensor of shape (out, in); a view of the layer's own where possible."""

    @abstractmethod
    def write(self, layer: nn.Module, weight: Tensor) -> None:
        """Overwrite the layer's weight with `weight` of shape (out, in), rounded to the layer's dtype."""

    def snapshot(self, layer: nn.Module) -> Tensor:
        """A copy of the stored weight from which `restore` brings back the same bits."""
        return cast("Tensor", layer.weight).detach().clone()

    @torch.no_grad()
    def restore(self, layer: nn.Module, snapshot: Tensor) -> None:
        """Put back what `snapshot` copied."""
        cast("Tensor", layer.weight).copy_(snapshot)
