"""The gradients of the adapter's contribution, by hand."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pera_lightning.functional.call import Call
from pera_lightning.functional.expansion.columns import float16_magnitude, left_constants, left_weights, right_weights
from pera_lightning.functional.expansion.fold import Expansion
from pera_lightning.functional.form import Form
from pera_lightning.functional.precision import as_matrix, in_dtype


class Kept(NamedTuple):
    """What a forward pass leaves for the backward pass."""

    seed: int | None
    """Of the dropout mask; None when nothing was dropped."""
    x: Tensor
    A: Tensor
    B: Tensor
    h: Tensor | None
    middle: Tensor | None
    """The product x right^T, shape (tokens, K), if it was kept."""


class Wanted(NamedTuple):
    """Which gradients are asked for."""

    x: bool
    A: bool
    B: bool
    h: bool


Gradients = tuple[Tensor | None, ...]
"""Of x, A, B and h; None where not wanted."""


class Both(NamedTuple):
    """Both factors expanded."""

    right: Expansion
    """To (K, in)."""
    left: Expansion
    """To (K, out), with coefficients and scaling."""
    constants: Tensor | None
    """What the coefficients are multiplied with, see `left_constants`."""


def expand_both(form: Form, A: Tensor, B: Tensor, h: Tensor | None, dtype: torch.dtype) -> Both:
    """Both factors expanded, for products in a dtype."""
    magnitude = float16_magnitude(A, form, dtype)
    constants = left_constants(form, A, magnitude)
    right = Expansion(A, form.order, form.terms, 1.0, right_weights(form, A, magnitude))
    left = Expansion(B.t(), form.order, form.terms, form.scaling, left_weights(h, constants))
    return Both(right, left, constants)


def factored_gradients(call: Call, kept: Kept, grad: Tensor, wanted: Wanted) -> Gradients:
    """Through the K expanded columns: five thin products, or four where the middle was kept."""
    seed, x, A, B, h, middle = kept
    dtype, of_left = call.dtype, wanted.B or wanted.h
    grad, mask = in_dtype(as_matrix(grad), dtype), call.mask(seed, x)
    right, left, constants = expand_both(call.form, A, B, h, dtype)
    expanded = in_dtype(right.expanded(), dtype)
    dropped = call.dropped(x, mask) if wanted.A or (of_left and middle is None) else None
    dx = dA = dB = dh = None
    if of_left and middle is None and dropped is not None:
        middle = F.linear(dropped, expanded)
    if wanted.x or wanted.A:
        # The gradient of the middle.
        back = F.linear(grad, in_dtype(left.expanded(), dtype))
        dx = _of_x(back @ expanded, mask, x) if wanted.x else None
        dA = None if dropped is None or not wanted.A else right.fold(in_dtype(back.t() @ dropped, A.dtype))
    if of_left and middle is not None:
        dB, dh = _of_left(in_dtype(middle.t() @ grad, A.dtype), left, constants, wanted)
    return dx, dA, dB, dh


def dense_gradients(call: Call, kept: Kept, grad: Tensor, wanted: Wanted) -> Gradients:
    """Through the gradient of dW: wins for small layers with many tokens and a large K."""
    seed, x, A, B, h, _ = kept
    of_left = wanted.B or wanted.h
    grad, mask = in_dtype(as_matrix(grad), call.dtype), call.mask(seed, x)
    right, left, constants = expand_both(call.form, A, B, h, call.dtype)
    # In the factors' own dtype or a wider one.
    right_rows, left_rows = right.expanded(), left.expanded()
    wide = torch.promote_types(left_rows.dtype, right_rows.dtype)
    right_rows, left_rows = in_dtype(right_rows, wide), in_dtype(left_rows, wide)
    dx = dA = dB = dh = None
    if wanted.x:
        dx = _of_x(grad @ (left_rows.t() @ right_rows).to(call.dtype), mask, x)
    if wanted.A or of_left:
        weight_grad = (grad.t() @ call.dropped(x, mask)).to(right_rows.dtype)
        dA = right.fold(left_rows @ weight_grad) if wanted.A else None
        if of_left:
            dB, dh = _of_left(right_rows @ weight_grad.t(), left, constants, wanted)
    return dx, dA, dB, dh


def _of_left(
    grad: Tensor, left: Expansion, constants: Tensor | None, wanted: Wanted
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of B and h, given that of the K rows of `left`."""
    dh = None
    if wanted.h:
        dh = (grad[left.rows.shape[0] :] * left.products).sum(1)
        dh = in_dtype(dh if constants is None else dh * constants, left.rows.dtype)
    return left.fold(grad, transposed=True) if wanted.B else None, dh


def _of_x(flat: Tensor, mask: Tensor | None, x: Tensor) -> Tensor:
    """The gradient of x, given that of what it was multiplied as, whose memory it may take."""
    if mask is not None:
        flat.mul_(mask)
    return in_dtype(flat if x.dim() == 2 else flat.view(x.shape), x.dtype)
