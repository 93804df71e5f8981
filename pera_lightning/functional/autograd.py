"""The adapter as one autograd Function that keeps the input and the small factors, and next to nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pera_lightning.functional.cost import backward_path, keeps_middle
from pera_lightning.functional.form import Form
from pera_lightning.functional.gradients import DenseBackward, FactoredBackward, Gradients, Kept, Wanted
from pera_lightning.functional.precision import without_autocast


class PeraFunction(torch.autograd.Function):
    """`output + scaling * (x right^T * columns) left`, the factors expanded on the fly.

    Kept for the backward pass: x (the caller's own tensor, no copy), A, B, the coefficients, and x right^T (tokens, K)
    only where it is small beside x. The expansion is built again, the dropout mask drawn again from its seed.
    Gradients of gradients work too: then plain operations take over.
    """

    @staticmethod
    def forward(
        ctx: Any, output: Tensor | None, x: Tensor, A: Tensor, B: Tensor, columns: Tensor | None, form: Form
    ) -> Tensor:
        """Shapes: x (..., in), `output` and the result (..., out)."""
        dropped = form.dropped(x, form.mask(x))
        flat = None if output is None else output.reshape(-1, B.shape[0])
        middle = None
        if form.forward_path == "factored":
            middle = dropped @ form.expanded(A).t()
            weighted, left = form.weighted(middle, columns), form.expanded(B.t().contiguous())
            result = weighted @ left if flat is None else torch.addmm(flat, weighted, left)
            wanted = ctx.needs_input_grad[3] or ctx.needs_input_grad[4]
            if not (wanted and keeps_middle(form.sizes(x, A, B))):
                middle = None
        else:
            result = form.operands(form.forward_path, A, B, columns).add_to(flat, dropped)
        ctx.form = form
        ctx.save_for_backward(x, A, B, columns, middle)
        return result.view(*x.shape[:-1], B.shape[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of output, x, A, B and columns."""
        form, kept, wanted = ctx.form, Kept(*ctx.saved_tensors), Wanted(*ctx.needs_input_grad[1:5])
        with without_autocast(grad.device.type):
            if torch.is_grad_enabled():
                gradients = _differentiable_gradients(form, kept, grad, wanted)
            else:
                path = form.backward_path or backward_path(form.sizes(*kept[:3]), kept.middle is not None)
                backward = DenseBackward if path == "dense" else FactoredBackward
                gradients = backward(form, kept, grad).gradients(wanted)
        return (grad if ctx.needs_input_grad[0] else None, *gradients, None)


def _differentiable_gradients(form: Form, kept: Kept, grad: Tensor, wanted: Wanted) -> Gradients:
    """The gradients with a graph of their own, for gradients of gradients."""
    x, A, B, columns, _ = kept
    result = form.operands("factored", A, B, columns).add_to(None, form.dropped(x, form.mask(x)))
    inputs = [value for value, want in zip((x, A, B, columns), wanted, strict=True) if want and value is not None]
    found = iter(torch.autograd.grad(result, inputs, grad.reshape(result.shape).to(result.dtype), create_graph=True))
    return tuple(next(found) if want else None for want in wanted)
