"""The contract between an adapter and the frozen layer below it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn


class Base(ABC):
    """How to read and write one kind of frozen linear layer. Stateless; the layer is an argument.

    All that the rest of the package asks of a layer, but for calling it and for its `bias` (None without one). Every
    kind answers `accepts` and `plain_forward`. The other answers are those of a layer with `in_features`,
    `out_features` and a floating `weight`; a kind that stores codes and scales gives its own `storage`, `weight`,
    `write`, `dtype`, `written_dtype`, `quantization`, `scales`, `snapshot` and `restore`, and `rounding` where adapters
    are to tell bases apart by their values. A kind is trusted to multiply with `weight`, and to let gradients through
    to its input, because it is in the registry; its subclasses with a forward of their own are not.
    """

    name: str
    """What the kind is called in messages."""

    linear = True
    """Whether layers of the kind are called with feature vectors; "all-linear" and quantisation take only those."""

    transposed = False
    """Whether the weight is stored as (in, out)."""

    @abstractmethod
    def accepts(self, layer: nn.Module) -> bool:
        """Whether `layer` is of this kind."""

    @abstractmethod
    def plain_forward(self) -> Callable[..., Any]:
        """The forward function of the kind itself; classes that compute by another may do more than multiply."""

    def features(self, layer: nn.Module) -> tuple[int, int]:
        """`(in_features, out_features)` of the layer."""
        return layer.in_features, layer.out_features  # type: ignore[return-value]

    def storage(self, layer: nn.Module) -> Tensor:
        """The parameter or buffer that the layer keeps its weight in, packed perhaps; the largest of several.

        It tells where the weight lies, and who shares it.
        """
        return cast("Tensor", layer.weight)

    def weight(self, layer: nn.Module) -> Tensor:
        """The weight as a floating tensor of shape (out, in); a view of the layer's own where possible."""
        weight = cast("Tensor", layer.weight)
        return weight.T if self.transposed else weight

    @torch.no_grad()
    def write(self, layer: nn.Module, weight: Tensor) -> None:
        """Overwrite the layer's weight with `weight` of shape (out, in), rounded as the layer stores it."""
        cast("Tensor", layer.weight).copy_(weight.T if self.transposed else weight)

    def stored(self, weight: Tensor) -> Tensor:
        """A weight of shape (out, in) as dense layers of the kind hold it."""
        return weight.T.contiguous() if self.transposed else weight

    def dtype(self, layer: nn.Module) -> torch.dtype:
        """The floating dtype that the layer's weight stands for."""
        return cast("Tensor", layer.weight).dtype

    def written_dtype(self, layer: nn.Module) -> torch.dtype:
        """The floating dtype that `write` rounds to, before it quantises where it does."""
        return cast("Tensor", layer.weight).dtype

    def quantization(self, layer: nn.Module) -> str | None:
        """How the stored weight is quantised ("nf4", "int8", ...), or None if it is the weight itself."""
        return None

    def scales(self, layer: nn.Module) -> list[Tensor]:
        """The tensors beside the stored weight that it takes to read it."""
        return []

    def rounding(self, layer: nn.Module, rows: Tensor, columns: Tensor, values: Tensor) -> Tensor | None:
        """How far some weights may be from what they were quantised from.

        Args:
            layer: The layer.
            rows: Where the weights are, (count,).
            columns: The same.
            values: What `weight` gives there, (count,), float32.

        Returns:
            The largest absolute errors (count,); None if the weight is not quantised.
        """
        return None

    def prepare(self, layer: nn.Module) -> None:  # noqa: B027 - most kinds have nothing to stop
        """Stop the layer from doing to itself what adapters above or below it do not survive."""

    def snapshot(self, layer: nn.Module) -> Any:
        """A copy of what the layer stores, from which `restore` brings back the same bits."""
        return cast("Tensor", layer.weight).detach().clone()

    @torch.no_grad()
    def restore(self, layer: nn.Module, snapshot: Any) -> None:
        """Put back what `snapshot` copied."""
        cast("Tensor", layer.weight).copy_(snapshot)

    def plain(self, layer: nn.Module, weight: Tensor, dtype: torch.dtype) -> nn.Module:
        """A plain layer in the place of `layer`: linear, or a Conv1D where the quantised one was made of that.

        Args:
            layer: Gives the bias, the mode and, where transformers or `quantize_linear` noted it, the class.
            weight: Shape (out, in).
            dtype: Of the new layer's weight and bias.
        """
        in_features, out_features = self.features(layer)
        source: Any = getattr(layer, "source_cls", nn.Linear)
        plain: nn.Module
        # On meta nothing is allocated or drawn.
        with torch.device("meta"):
            if source.__name__ == "Conv1D":
                plain, weight = source(out_features, in_features), weight.T.contiguous()
            else:
                plain = nn.Linear(in_features, out_features, bias=False)
        plain.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
        if layer.bias is not None:
            plain.bias = nn.Parameter(cast("Tensor", layer.bias).detach().to(dtype), requires_grad=False)
        return plain.train(layer.training)
