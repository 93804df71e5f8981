"""What one call of the adapter depends on besides its tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pera_lightning.config import Terms
from pera_lightning.functional.cost import Sizes, sizes_of
from pera_lightning.functional.dropout_mask import keep_mask
from pera_lightning.functional.fold import expand_rows, fold
from pera_lightning.functional.operands import Operands, prepare


class Form(NamedTuple):
    """Options, dtype and dropout mask of one call."""

    order: int
    terms: Terms
    scaling: float
    """Of the result; includes dropout's 1 / (1 - dropout)."""
    forward_path: str
    backward_path: str | None
    """None lets the cost model choose."""
    dtype: torch.dtype
    """Of the products with x."""
    dropout: float = 0.0
    seed: int | None = None
    """Of the dropout mask; None when nothing is dropped."""

    def mask(self, x: Tensor) -> Tensor | None:
        """(tokens, in): 1 where an entry of x is kept, 0 where it is lost; None without dropout. The same each time."""
        if self.seed is None:
            return None
        return keep_mask(self.seed, (x.numel() // x.shape[-1], x.shape[-1]), x.device, self.dtype, self.dropout)

    def dropped(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """The input as (tokens, in) in the dtype of the products, its lost entries zero."""
        x = x.reshape(-1, x.shape[-1]).to(self.dtype)
        return x if mask is None else x * mask

    def expanded(self, rows: Tensor) -> Tensor:
        """The expansion of A or of B transposed, in the dtype of the products."""
        return expand_rows(rows, self.order, self.terms).to(self.dtype)

    def folded(self, grad: Tensor, rows: Tensor) -> Tensor:
        """The gradient of A or of B transposed, given that of its expansion."""
        return fold(grad.to(rows.dtype), rows, self.order, self.terms)

    def weighted(self, middle: Tensor, columns: Tensor | None) -> Tensor:
        """Each of the K columns of `middle` times its coefficient and the scaling, rounded once."""
        return (middle * (self.scaling if columns is None else columns * self.scaling)).to(middle.dtype)

    def operands(self, path: str, A: Tensor, B: Tensor, columns: Tensor | None) -> Operands:
        """The adapter ready to multiply with x, differentiable."""
        return prepare(path, A, B, columns, order=self.order, terms=self.terms, scaling=self.scaling, dtype=self.dtype)

    def sizes(self, x: Tensor, A: Tensor, B: Tensor) -> Sizes:
        """What the cost model looks at."""
        return sizes_of(x, A, B, self.order, self.terms)
