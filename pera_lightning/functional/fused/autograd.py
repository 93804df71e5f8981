"""The adapter as one autograd Function that keeps the input and the small factors, and next to nothing else."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pera_lightning.functional.call import Call
from pera_lightning.functional.fused.dropout_mask import draw_seed
from pera_lightning.functional.fused.gradients import (
    Gradients,
    Kept,
    Wanted,
    dense_gradients,
    expand_both,
    factored_gradients,
)
from pera_lightning.functional.operands import prepare
from pera_lightning.functional.precision import as_matrix, autocast_enabled, in_dtype, unflattened


class PeraFunction(torch.autograd.Function):
    """`output + (x right^T) left`, the factors expanded on the fly.

    Kept for the backward pass: x, A, B, h (the caller's own tensors, no copies), and x right^T (tokens, K) only where
    it is small beside x. The expansion is built again, the dropout mask drawn again from its seed.
    Gradients of gradients work too: then plain operations take over.
    """

    @staticmethod
    def forward(
        ctx: Any, output: Tensor | None, x: Tensor, A: Tensor, B: Tensor, h: Tensor | None, call: Call
    ) -> Tensor:
        """Shapes: x (..., in), `output` and the result (..., out)."""
        form = call.form
        ctx.seed = seed = draw_seed() if call.dropout else None
        dropped = call.dropped(x, call.mask(seed, x))
        flat = None if output is None else as_matrix(output)
        middle = None
        if call.forward_path == "factored":
            right, left, _ = expand_both(form, A, B, h, call.dtype)
            middle = F.linear(dropped, in_dtype(right.expanded(), call.dtype))
            expanded = in_dtype(left.expanded(), call.dtype)
            result = middle @ expanded if flat is None else torch.addmm(flat, middle, expanded)
            if not (call.keeps_middle and (ctx.needs_input_grad[3] or ctx.needs_input_grad[4])):
                middle = None
        else:
            result = prepare(call.forward_path, A, B, h, form, call.dtype).add_to(flat, dropped)
        ctx.call = call
        ctx.save_for_backward(x, A, B, h, middle)
        return result if x.dim() == 2 else unflattened(result, (*x.shape[:-1], B.shape[0]))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of output, x, A, B and h."""
        needed = ctx.needs_input_grad
        kept, wanted = Kept(ctx.seed, *ctx.saved_tensors), Wanted(*needed[1:5])
        if autocast_enabled(grad.device.type):
            with torch.autocast(grad.device.type, enabled=False):
                gradients = _gradients(ctx.call, kept, grad, wanted)
        else:
            gradients = _gradients(ctx.call, kept, grad, wanted)
        return (grad if needed[0] else None, *gradients, None)


def _gradients(call: Call, kept: Kept, grad: Tensor, wanted: Wanted) -> Gradients:
    if torch.is_grad_enabled():
        return _differentiable_gradients(call, kept, grad, wanted)
    return (dense_gradients if call.backward_path == "dense" else factored_gradients)(call, kept, grad, wanted)


def _differentiable_gradients(call: Call, kept: Kept, grad: Tensor, wanted: Wanted) -> Gradients:
    """The gradients with a graph of their own, for gradients of gradients."""
    seed, x, A, B, h, *_ = kept
    operands = prepare("factored", A, B, h, call.form, call.dtype)
    result = operands.add_to(None, call.dropped(x, call.mask(seed, x)))
    inputs = [value for value, want in zip((x, A, B, h), wanted, strict=True) if want and value is not None]
    found = iter(torch.autograd.grad(result, inputs, grad.reshape(result.shape).to(result.dtype), create_graph=True))
    return tuple(next(found) if want else None for want in wanted)
