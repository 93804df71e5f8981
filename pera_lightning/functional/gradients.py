"""The gradients of the adapter's contribution, by hand."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from pera_lightning.functional.fold import expand_rows
from pera_lightning.functional.form import Form


class Kept(NamedTuple):
    """What a forward pass leaves for the backward pass."""

    x: Tensor
    A: Tensor
    B: Tensor
    columns: Tensor | None
    middle: Tensor | None
    """The product x right^T, shape (tokens, K), if it was kept."""


class Wanted(NamedTuple):
    """Which gradients are asked for."""

    x: bool
    A: bool
    B: bool
    columns: bool


Gradients = tuple[Tensor | None, ...]
"""Of x, A, B and columns; None where not wanted."""


class Backward:
    """One backward pass. What several gradients need is made once, and only if one of them is wanted."""

    def __init__(self, form: Form, kept: Kept, grad: Tensor) -> None:
        self.form = form
        self.x, self.A, self.B, self.columns, self._kept_middle = kept
        self.grad = grad.reshape(-1, self.B.shape[0]).to(form.dtype)

    @cached_property
    def mask(self) -> Tensor | None:
        """Of the dropout, shape (tokens, in)."""
        return self.form.mask(self.x)

    @cached_property
    def dropped(self) -> Tensor:
        """What the forward pass multiplied with, shape (tokens, in)."""
        return self.form.dropped(self.x, self.mask)

    @cached_property
    def rows(self) -> Tensor:
        """B transposed, shape (rank, out)."""
        return self.B.t().contiguous()

    def of_x(self, flat: Tensor) -> Tensor:
        """The gradient of x, given that of `dropped`, whose memory it may take."""
        if self.mask is not None:
            flat.mul_(self.mask)
        return flat.view(self.x.shape).to(self.x.dtype)


class FactoredBackward(Backward):
    """Through the K expanded columns: five thin products, or four where the middle was kept."""

    @cached_property
    def right(self) -> Tensor:
        """The expansion of A, shape (K, in)."""
        return self.form.expanded(self.A)

    @cached_property
    def left(self) -> Tensor:
        """The expansion of B transposed, shape (K, out)."""
        return self.form.expanded(self.rows)

    @cached_property
    def middle(self) -> Tensor:
        """Shape (tokens, K)."""
        return self.dropped @ self.right.t() if self._kept_middle is None else self._kept_middle

    @cached_property
    def back(self) -> Tensor:
        """The gradient on its way back through `left`, shape (tokens, K)."""
        return self.grad @ self.left.t()

    @cached_property
    def weighted_back(self) -> Tensor:
        """The gradient of the middle, shape (tokens, K)."""
        return self.form.weighted(self.back, self.columns)

    def gradients(self, wanted: Wanted) -> Gradients:
        """Those that are wanted."""
        dcolumns = self._of_columns() if wanted.columns else None
        dx = self.of_x(self.weighted_back @ self.right) if wanted.x else None
        weighted_middle = self.form.weighted(self.middle, self.columns) if wanted.B else None
        dA = self._folded(self.weighted_back, self.dropped, self.A, "right") if wanted.A else None
        dB = None if weighted_middle is None else self._folded(weighted_middle, self.grad, self.rows, "left").t()
        return dx, dA, dB, dcolumns

    def _of_columns(self) -> Tensor:
        return (self.middle * self.back).sum(0, dtype=self.A.dtype) * self.form.scaling

    def _folded(self, middle: Tensor, outer: Tensor, rows: Tensor, expansion: str) -> Tensor:
        # The expansion has served by now; the gradient takes its memory.
        room = self.__dict__.pop(expansion, None)
        grad = torch.mm(middle.t(), outer, out=None if room is rows else room)
        return self.form.folded(grad, rows)


class DenseBackward(Backward):
    """Through the gradient of dW: wins for small layers with many tokens and a large K."""

    @cached_property
    def right(self) -> Tensor:
        """The expansion of A in its own dtype, shape (K, in)."""
        return expand_rows(self.A, self.form.order, self.form.terms)

    @cached_property
    def left(self) -> Tensor:
        """The expansion of B transposed in its own dtype, shape (K, out)."""
        return expand_rows(self.rows, self.form.order, self.form.terms)

    @cached_property
    def factor(self) -> Tensor | float:
        """What the K columns are multiplied with, shape (K, 1)."""
        return self.form.scaling if self.columns is None else (self.columns * self.form.scaling)[:, None]

    @cached_property
    def weight_grad(self) -> Tensor:
        """The gradient of dW, shape (out, in)."""
        return (self.grad.t() @ self.dropped).to(self.A.dtype)

    @cached_property
    def left_grad(self) -> Tensor:
        """The gradient of `left` before the coefficients, shape (K, out)."""
        return self.right @ self.weight_grad.t()

    def gradients(self, wanted: Wanted) -> Gradients:
        """Those that are wanted."""
        dx = dA = dB = dcolumns = None
        if wanted.x:
            weight = ((self.left * self.factor).t() @ self.right).to(self.form.dtype)
            dx = self.of_x(self.grad @ weight)
        if wanted.A:
            dA = self.form.folded((self.left @ self.weight_grad) * self.factor, self.A)
        if wanted.B:
            dB = self.form.folded(self.left_grad * self.factor, self.rows).t()
        if wanted.columns:
            dcolumns = (self.left_grad * self.left).sum(1) * self.form.scaling
        return dx, dA, dB, dcolumns
