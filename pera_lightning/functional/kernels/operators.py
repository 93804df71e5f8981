"""The kernels as operators of torch, for whoever looks on: a compiler, the meta device, a mode that counts.

An operator costs as much as three plain operations to call, so that in eager mode the kernels are started directly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pera_lightning.form_bounds import column_count
from pera_lightning.functional.form import Form
from pera_lightning.functional.kernels.tables import compute_dtype, padded_width

ROWS = 128
"""Rows of B that one sum for the gradient of h goes over; `fold.BLOCK`, known without Triton."""

_FORM = "int order, str terms, float scaling, float[] factors"


@torch.library.custom_op(
    "pera_lightning::expand_factors",
    mutates_args=(),
    schema=f"(Tensor A, Tensor B, Tensor? h, Tensor? largest, {_FORM}, ScalarType dtype) -> (Tensor, Tensor)",
)
def expand_factors(
    A: Tensor,
    B: Tensor,
    h: Tensor | None,
    largest: Tensor | None,
    order: int,
    terms: Any,
    scaling: float,
    factors: Sequence[float],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """`AdapterKernels.expand`."""
    return _kernels(Form(order, terms, scaling, tuple(factors)), A, B, dtype).expand(A, B, h, largest)


@expand_factors.register_fake
def _(
    A: Tensor, B: Tensor, h: Any, largest: Any, order: int, terms: Any, scaling: float, factors: Any, dtype: Any
) -> tuple[Tensor, Tensor]:
    width = padded_width(Form(order, terms, scaling, tuple(factors)), A.shape[0])
    return A.new_empty(width, A.shape[1], dtype=dtype), B.new_empty(B.shape[0], width, dtype=dtype)


def _expand_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    A, B, h, largest, *ctx.form, _ = inputs
    ctx.save_for_backward(A, B, h, largest)


def _expand_backward(ctx: Any, right_grad: Tensor, left_grad: Tensor) -> tuple[Any, ...]:
    A, B, h, largest = ctx.saved_tensors
    A_grad, B_grad, sums = fold_gradients(right_grad, left_grad, A, B, h, largest, h is not None, *ctx.form)
    return A_grad, B_grad, None if h is None else sums.sum(0).to(h.dtype), *[None] * 6


expand_factors.register_autograd(_expand_backward, setup_context=_expand_context)


@torch.library.custom_op(
    "pera_lightning::fold_gradients",
    mutates_args=(),
    schema="(Tensor? right_grad, Tensor? left_grad, Tensor A, Tensor B, Tensor? h, Tensor? largest, bool want_h, "
    f"{_FORM}) -> (Tensor, Tensor, Tensor)",
)
def fold_gradients(
    right_grad: Tensor | None,
    left_grad: Tensor | None,
    A: Tensor,
    B: Tensor,
    h: Tensor | None,
    largest: Tensor | None,
    want_h: bool,
    order: int,
    terms: Any,
    scaling: float,
    factors: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor]:
    """`AdapterKernels.fold`; tensors without entries where a gradient is not wanted."""
    # Autograd hands over gradients of any strides.
    grads = [None if grad is None else grad.contiguous() for grad in (right_grad, left_grad)]
    dtype = next(grad.dtype for grad in grads if grad is not None)
    kernels = _kernels(Form(order, terms, scaling, tuple(factors)), A, B, dtype)
    found = kernels.fold(*grads, A, B, h, largest, want_h)
    return tuple(A.new_empty(0) if value is None else value for value in found)  # type: ignore[return-value]


@fold_gradients.register_fake
def _(
    right_grad: Any,
    left_grad: Any,
    A: Tensor,
    B: Tensor,
    h: Any,
    largest: Any,
    want_h: bool,
    order: int,
    terms: Any,
    scaling: float,
    factors: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    nothing = A.new_empty(0)
    sums = nothing
    if want_h and h is not None:
        shape = (-(-B.shape[0] // ROWS), column_count(A.shape[0], order, terms) - A.shape[0])
        grad = left_grad if right_grad is None else right_grad
        sums = B.new_empty(shape, dtype=compute_dtype(torch.promote_types(grad.dtype, A.dtype)))
    A_grad = nothing if right_grad is None else torch.empty_like(A, memory_format=torch.contiguous_format)
    return A_grad, nothing if left_grad is None else torch.empty_like(B, memory_format=torch.contiguous_format), sums


@torch.library.custom_op(
    "pera_lightning::drop_entries",
    mutates_args=(),
    schema="(Tensor x, Tensor seed, int lost, ScalarType dtype) -> Tensor",
)
def drop_entries(x: Tensor, seed: Tensor, lost: int, dtype: torch.dtype) -> Tensor:
    """`kernels.adapter.drop`."""
    from pera_lightning.functional.kernels import adapter

    return adapter.drop(x, seed, lost, dtype)


@drop_entries.register_fake
def _(x: Tensor, seed: Any, lost: int, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)


def _drop_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, seed, ctx.lost, _ = inputs
    ctx.dtype = x.dtype
    ctx.save_for_backward(seed)


def _drop_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (seed,) = ctx.saved_tensors
    return drop_entries(grad, seed, ctx.lost, ctx.dtype), None, None, None


drop_entries.register_autograd(_drop_backward, setup_context=_drop_context)


@torch.library.custom_op(
    "pera_lightning::drop_entries_", mutates_args=("x",), schema="(Tensor(a!) x, Tensor seed, int lost) -> ()"
)
def drop_entries_(x: Tensor, seed: Tensor, lost: int) -> None:
    """`drop_entries` in the place of a contiguous x."""
    from pera_lightning.functional.kernels import adapter

    adapter.drop(x, seed, lost, x.dtype, out=x)


@drop_entries_.register_fake
def _(x: Tensor, seed: Any, lost: int) -> None:
    return None


def _kernels(form: Form, A: Tensor, B: Tensor, dtype: torch.dtype) -> Any:
    # Triton is imported here and not before.
    from pera_lightning.functional.kernels.adapter import adapter_kernels

    return adapter_kernels(form, A.shape[0], A.shape[1], B.shape[0], dtype, A.dtype, A.device)


class OperatorKernels(NamedTuple):
    """`AdapterKernels` by operators."""

    form: Form
    dtype: torch.dtype
    """Of the expanded factors."""

    def expand(self, A: Tensor, B: Tensor, h: Tensor | None, largest: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `AdapterKernels.expand`."""
        return expand_factors(A, B, h, largest, *self.form, self.dtype)

    def fold(self, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        """See `AdapterKernels.fold`; tensors without entries where a gradient is not wanted."""
        return fold_gradients(*arguments, *self.form)

    def drop(self, x: Tensor, seed: Tensor, lost: int, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        """See `AdapterKernels.drop`."""
        if out is not x:
            return drop_entries(x, seed, lost, dtype)
        drop_entries_(x, seed, lost)
        return x
