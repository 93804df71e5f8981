"""Plain linear layers: `nn.Linear` and its subclasses with an ordinary floating weight."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from pera_lightning.bases.base import Base


class DenseBase(Base):
    """`nn.Linear`: the weight is stored as (out, in)."""

    name = "torch.nn.Linear"

    def accepts(self, layer: nn.Module) -> bool:
        """Linear layers whose stored weight is the matrix itself; quantised subclasses pack it otherwise."""
        # A computed weight (parametrizations, weight_norm, pruning) would swallow what a merge writes to it.
        if not isinstance(layer, nn.Linear) or "weight" not in layer._parameters:
            return False
        if isinstance(layer.weight, nn.parameter.UninitializedParameter):
            return False
        shape = (layer.out_features, layer.in_features)
        return _is_plain(layer.weight) and tuple(layer.weight.shape) == shape

    def features(self, layer: nn.Module) -> tuple[int, int]:
        """`(in_features, out_features)` of the layer."""
        return layer.in_features, layer.out_features  # type: ignore[return-value]

    def weight(self, layer: nn.Module) -> Tensor:
        """The layer's own weight."""
        return cast("Tensor", layer.weight)

    @torch.no_grad()
    def write(self, layer: nn.Module, weight: Tensor) -> None:
        """Overwrite the weight in place."""
        cast("Tensor", layer.weight).copy_(weight)


def _is_plain(weight: Tensor) -> bool:
    """Whether the tensor holds the matrix itself.

    float8 needs its scales; some tensors of quantisation libraries look like floats of the right shape and are not.
    """
    if type(weight).__module__.startswith(("torchao", "bitsandbytes")):
        return False
    return weight.is_floating_point() and weight.dtype.itemsize > 1
