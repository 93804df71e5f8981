"""transformers' `Conv1D` (GPT-2): a linear layer that stores its weight transposed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn

from pera_lightning.base_layers.base import Base


class Conv1DBase(Base):
    """`transformers.pytorch_utils.Conv1D`: the weight is stored as (in, out)."""

    name = "transformers Conv1D"
    transposed = True

    def accepts(self, layer: nn.Module) -> bool:
        """Whether `layer` is a Conv1D; transformers is looked up, never imported."""
        # A model can only hold a Conv1D if something imported transformers before.
        module = sys.modules.get("transformers.pytorch_utils")
        return module is not None and isinstance(layer, module.Conv1D)

    def plain_forward(self) -> Callable[..., Any]:
        """That of `Conv1D`."""
        return cast("Callable[..., Any]", sys.modules["transformers.pytorch_utils"].Conv1D.forward)

    def features(self, layer: nn.Module) -> tuple[int, int]:
        """`(in_features, out_features)` of the layer."""
        in_features, out_features = cast("Tensor", layer.weight).shape
        return in_features, out_features
