"""The adapter on a GPU: Triton kernels around torch's matrix products."""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pera_lightning.form_bounds import column_count
from pera_lightning.functional.call import Call, Options, call_of
from pera_lightning.functional.form import Form
from pera_lightning.functional.fused.dropout_mask import LEVELS
from pera_lightning.functional.fused.gradients import Gradients, Wanted
from pera_lightning.functional.kernels.availability import SWITCH, unavailable_reason
from pera_lightning.functional.kernels.operators import OperatorKernels
from pera_lightning.functional.kernels.tables import MOST_COLUMNS
from pera_lightning.functional.operands import prepare
from pera_lightning.functional.precision import as_matrix, autocast_enabled, in_dtype, unflattened


class FusedCall(NamedTuple):
    """What a call depends on besides its tensors."""

    form: Form
    dtype: torch.dtype
    """Of the products with x."""
    lost: int
    """How many of 65536 entries of x are lost, on average."""
    dense_forward: bool
    """Whether dW is built, instead of two thin products."""
    dense_backward: bool
    keeps_middle: bool
    kernels: Any
    """`AdapterKernels`, to start them directly, or `OperatorKernels` where somebody looks on."""

    def seed(self, x: Tensor) -> Tensor | None:
        """A seed for the dropout mask, on the device: drawn by its generator, anew by every replay of a CUDA graph."""
        return torch.randint(1 << 62, (1,), dtype=torch.int64, device=x.device) if self.lost else None

    def largest(self, A: Tensor) -> Tensor | None:
        """See `float16_magnitude`."""
        if self.dtype is not torch.float16 or self.form.order == 1:
            return None
        return torch.linalg.vector_norm(A, float("inf"), dtype=torch.float32)

    def drop(self, x: Tensor, seed: Tensor | None, dtype: torch.dtype) -> Tensor:
        """The input as (tokens, features) in a dtype, without its lost entries."""
        flat = as_matrix(x)
        return in_dtype(flat, dtype) if seed is None else self.kernels.drop(flat, seed, self.lost, dtype)

    def of_x(self, flat: Tensor, seed: Tensor | None, x: Tensor) -> Tensor:
        """The gradient of x, given that of what `drop` makes of it, whose memory it may take."""
        if seed is None:
            flat = in_dtype(flat, x.dtype)
        else:
            flat = self.kernels.drop(flat, seed, self.lost, x.dtype, flat if flat.dtype is x.dtype else None)
        return flat if x.dim() == 2 else flat.view(x.shape)


class Kept(NamedTuple):
    """What a forward pass leaves for the backward pass."""

    x: Tensor
    A: Tensor
    B: Tensor
    h: Tensor | None
    seed: Tensor | None
    """Of the dropout mask; None when nothing was dropped."""
    middle: Tensor | None = None
    """The product x right^T, shape (tokens, K), if it was kept."""


class FusedFunction(torch.autograd.Function):
    """`output + dropout(x) dW^T` as `PeraFunction`, with kernels.

    Kept for the backward pass: x, A, B, h (the caller's own tensors, no copies), the seed, and x right^T (tokens, K)
    only where it is small beside x.
    """

    @staticmethod
    def forward(
        ctx: Any, output: Tensor | None, x: Tensor, A: Tensor, B: Tensor, h: Tensor | None, call: FusedCall
    ) -> Tensor:
        """Shapes: x (..., in), `output` and the result (..., out)."""
        seed = call.seed(x)
        result, middle = fused_forward(call, output, x, A, B, h, seed)
        kept = middle if call.keeps_middle and (ctx.needs_input_grad[3] or ctx.needs_input_grad[4]) else None
        ctx.save_for_backward(x, A, B, h, seed, kept)
        ctx.call = call
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of output, x, A, B and h."""
        needed, kind = ctx.needs_input_grad, grad.device.type
        kept, wanted = Kept(*ctx.saved_tensors), Wanted(*needed[1:5])
        if autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):
                gradients = _gradients(ctx.call, kept, grad, wanted)
        else:
            gradients = _gradients(ctx.call, kept, grad, wanted)
        return (grad if needed[0] else None, *gradients, None)


def _gradients(call: FusedCall, kept: Kept, grad: Tensor, wanted: Wanted) -> Gradients:
    if torch.is_grad_enabled():
        return _plain_gradients(call, kept, grad, wanted)
    try:
        return fused_backward(call, kept, grad, wanted)
    except NotImplementedError:
        # A batch of gradients (is_grads_batched) has no memory that a kernel could read.
        return _plain_gradients(call, kept, grad, wanted)


def fused_forward(
    call: FusedCall, output: Tensor | None, x: Tensor, A: Tensor, B: Tensor, h: Tensor | None, seed: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The result and, unless dW was built, the product x right^T (tokens, K)."""
    dropped = call.drop(x, seed, call.dtype)
    right, left = call.kernels.expand(A, B, h, call.largest(A))
    middle = None if call.dense_forward else F.linear(dropped, right)
    # Two thin products, or one with dW.
    inner, weight = (dropped, (left @ right).t()) if middle is None else (middle, left.t())
    result = inner @ weight if output is None else torch.addmm(as_matrix(output), inner, weight)
    return result if x.dim() == 2 else unflattened(result, (*x.shape[:-1], B.shape[0])), middle


def fused_backward(call: FusedCall, kept: Kept, grad: Tensor, wanted: Wanted) -> Gradients:
    """Gradients of x, A, B and h."""
    A, B, h = kept.A, kept.B, kept.h
    grad = in_dtype(as_matrix(grad), call.dtype)
    largest = call.largest(A)
    right, left = call.kernels.expand(A, B, h, largest)
    backward = _dense_backward if call.dense_backward else _factored_backward
    dx, right_grad, left_grad = backward(call, kept, grad, right, left, wanted)
    if right_grad is None and left_grad is None:
        return dx, None, None, None
    dA, dB, sums = call.kernels.fold(right_grad, left_grad, A, B, h, largest, wanted.h)
    dh = in_dtype(sums.sum(0), h.dtype) if wanted.h and h is not None and sums is not None else None
    return dx, dA if wanted.A else None, dB if wanted.B else None, dh


Parts = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Gradients of x, `right` and `left`; None where not wanted."""


def _factored_backward(call: FusedCall, kept: Kept, grad: Tensor, right: Tensor, left: Tensor, wanted: Wanted) -> Parts:
    """Through the K expanded columns."""
    x, seed, middle, of_left = kept.x, kept.seed, kept.middle, wanted.B or wanted.h
    # The gradient of the middle.
    back = grad @ left if wanted.x or wanted.A else None
    # First: `back right` is gone before x is dropped again.
    dx = call.of_x(back @ right, seed, x) if wanted.x and back is not None else None
    dropped = call.drop(x, seed, call.dtype) if wanted.A or (of_left and middle is None) else None
    right_grad = back.t() @ dropped if wanted.A and back is not None and dropped is not None else None
    if of_left and middle is None and dropped is not None:
        middle = F.linear(dropped, right)
    return dx, right_grad, grad.t() @ middle if of_left and middle is not None else None


def _dense_backward(call: FusedCall, kept: Kept, grad: Tensor, right: Tensor, left: Tensor, wanted: Wanted) -> Parts:
    """Through the gradient of dW."""
    of_left = wanted.B or wanted.h
    dx = call.of_x(grad @ (left @ right), kept.seed, kept.x) if wanted.x else None
    if not (wanted.A or of_left):
        return dx, None, None
    weight_grad = grad.t() @ call.drop(kept.x, kept.seed, call.dtype)
    return dx, left.t() @ weight_grad if wanted.A else None, weight_grad @ right.t() if of_left else None


def _plain_gradients(call: FusedCall, kept: Kept, grad: Tensor, wanted: Wanted) -> Gradients:
    """The gradients by plain operations: with a graph of their own, for gradients of gradients, or of a batch."""
    differentiable = torch.is_grad_enabled()
    x, A, B, h, seed, _ = kept
    with torch.no_grad():
        mask = call.drop(torch.ones_like(x), seed, call.dtype)
    inputs = [value for value, want in zip((x, A, B, h), wanted, strict=True) if want and value is not None]
    with torch.enable_grad():
        dropped = in_dtype(x.reshape(mask.shape), call.dtype) * mask
        result = prepare("factored", A, B, h, call.form, call.dtype).add_to(None, dropped)
        grad = grad.reshape(result.shape).to(result.dtype)
        found = iter(torch.autograd.grad(result, inputs, grad, create_graph=differentiable))
    return tuple(next(found) if want else None for want in wanted)


def uses_kernels(device: torch.device) -> bool:
    """Whether adapters on this device are computed with kernels; where a GPU lacks them, one line says why."""
    reason = unavailable_reason(device)
    if reason is not None and device.type == "cuda" and not torch.compiler.is_compiling():
        _say_once(reason)
    return reason is None


@lru_cache(maxsize=4096)
def fused_call(
    options: Options,
    tokens: int,
    rank: int,
    n: int,
    m: int,
    dtype: torch.dtype,
    factor_dtype: torch.dtype,
    device: torch.device,
    direct: bool,
) -> FusedCall | None:
    """How kernels compute calls of a shape; see `call_of` and `fused_form`."""
    call = call_of(options, tokens, rank, n, m, dtype, device.type)
    return fused_form(call, rank, n, m, factor_dtype, device, direct)


@lru_cache(maxsize=4096)
def fused_form(
    call: Call, rank: int, n: int, m: int, factor_dtype: torch.dtype, device: torch.device, direct: bool
) -> FusedCall | None:
    """How kernels compute a call; None if they do not serve the shape, or turn out not to work on this device.

    Args:
        call: Ways and dtype.
        rank: Of the adapter.
        n: Length of a row of x.
        m: Length of a row of the output.
        factor_dtype: Of A, B and h.
        device: Of all tensors.
        direct: Whether to start kernels without the detour over operators.
    """
    kernels: Any = OperatorKernels(call.form, call.dtype)
    if column_count(rank, call.form.order, call.form.terms) > MOST_COLUMNS:
        return None
    if direct:
        try:
            from pera_lightning.functional.kernels.adapter import adapter_kernels

            kernels = adapter_kernels(call.form, rank, n, m, call.dtype, factor_dtype, device)
            kernels.try_out(call.dropout > 0)
        except torch.OutOfMemoryError:
            raise
        # Whatever Triton, its compiler or the driver may raise: the run goes on without.
        except Exception as error:
            _say_once(f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}")
            return None
    dense_forward, dense_backward = call.forward_path == "dense", call.backward_path == "dense"
    # At order 1 it is small beside x in narrow layers too.
    keeps = call.keeps_middle or (call.form.order == 1 and 16 * rank <= n)
    lost = round(call.dropout * LEVELS)
    return FusedCall(call.form, call.dtype, lost, dense_forward, dense_backward, keeps, kernels)


@lru_cache(maxsize=16)
def _say_once(reason: str) -> None:
    if not reason.startswith(SWITCH):
        warnings.warn(
            f"Adapters are computed without fused kernels, which is slower: {reason}.", UserWarning, stacklevel=2
        )
