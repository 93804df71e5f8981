"""Cross entropy over a large vocabulary whose logits never exist as a whole."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pera_lightning.errors import ConfigError
from pera_lightning.functional.precision import product_dtype, without_autocast

CHUNK = 1 << 23
"""Logits that exist at one time: 32 MB in float32."""


def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    ignore_index: int = -100,
    rows: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """`cross_entropy(hidden weight^T + bias, targets)` for a frozen output head, a few positions at a time.

    The gradients of `hidden` and of trained rows are computed along with the loss, while a chunk's logits are at hand,
    so the backward pass needs neither the logits nor a second product with the head.

    Args:
        hidden: Shape (N, hidden), floating: the head's input at N positions.
        weight: Shape (vocabulary, hidden); gets no gradient.
        bias: Shape (vocabulary,) or None; gets no gradient.
        targets: Shape (N,), int64.
        ignore_index: Target of a position that takes no part.
        rows: Of tokens whose rows of the weight are trained, the ids (n,) and what is added to the rows (n, hidden).

    Returns:
        Mean over the positions that take part, a float32 scalar (float64 for float64 inputs); NaN if there are none.
        Can be differentiated once; a backward pass with `create_graph=True` raises ConfigError.

    Raises:
        ConfigError: The head wants a gradient, or a shape does not fit.
    """
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        raise ConfigError(
            "The output head cannot be trained with a chunked loss.",
            got="a head that requires a gradient",
            expected="a frozen weight and bias",
            fix="use torch.nn.functional.cross_entropy on the whole logits",
        )
    if hidden.dim() != 2 or targets.shape != hidden.shape[:1] or weight.shape[1:] != hidden.shape[1:]:
        raise ConfigError(
            "The loss's inputs do not fit together.",
            got=f"hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)}, targets {tuple(targets.shape)}",
            expected="(N, hidden), (vocabulary, hidden) and (N,)",
            fix="flatten batch and time",
        )
    dtype = product_dtype(hidden)
    tokens, delta = rows or (None, None)
    with without_autocast(hidden.device.type):
        options = (ignore_index, dtype, torch.is_grad_enabled())
        return _ChunkedCrossEntropy.apply(hidden, weight.to(dtype), bias, targets, *options, tokens, delta)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        ignore_index: int,
        dtype: torch.dtype,
        with_gradient: bool,
        tokens: Tensor | None,
        delta: Tensor | None,
    ) -> Tensor:
        positions = max(1, CHUNK // weight.shape[0])
        count = (targets != ignore_index).sum()
        gradient = torch.empty_like(hidden) if with_gradient and ctx.needs_input_grad[0] else None
        row_gradient = (
            torch.zeros_like(delta) if delta is not None and with_gradient and ctx.needs_input_grad[8] else None
        )
        total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        for start in range(0, hidden.shape[0], positions):
            part = slice(start, start + positions)
            logits = F.linear(hidden[part].to(dtype), weight)
            if tokens is not None and delta is not None:
                logits.index_add_(1, tokens, F.linear(hidden[part].to(dtype), delta.to(dtype)))
            logits = logits.to(total.dtype)
            if bias is not None:
                logits += bias
            total += F.cross_entropy(logits, targets[part], ignore_index=ignore_index, reduction="sum")
            if gradient is None and row_gradient is None:
                continue
            _to_gradient(logits, targets[part], ignore_index)
            of_rows = None if tokens is None else logits[:, tokens]
            if gradient is not None:
                below = logits.to(dtype) @ weight
                if of_rows is not None and delta is not None:
                    below += of_rows.to(dtype) @ delta.to(dtype)
                gradient[part] = below.to(hidden.dtype)
            if row_gradient is not None and of_rows is not None:
                row_gradient += (of_rows.T @ hidden[part].to(total.dtype)).to(row_gradient.dtype)
        ctx.save_for_backward(gradient, row_gradient, count)
        return total / count

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise ConfigError(
                "The chunked loss has no second derivative.",
                got="a backward pass with create_graph=True",
                expected="one that asks for gradients alone",
                fix="use torch.nn.functional.cross_entropy on the whole logits",
            )
        gradient, row_gradient, count = ctx.saved_tensors
        # In the loss's own dtype: a float16 gradient could hold neither 1 / count nor a GradScaler's scale.
        scaled, row_scaled = (
            None if value is None else (value.to(grad.dtype) * (grad / count)).to(value.dtype)
            for value in (gradient, row_gradient)
        )
        return (scaled, None, None, None, None, None, None, None, row_scaled)


def _to_gradient(logits: Tensor, targets: Tensor, ignore_index: int) -> None:
    """Overwrite the logits by the gradient of the summed loss: probabilities, less one at the target."""
    torch.softmax(logits, dim=-1, out=logits)
    taken = targets != ignore_index
    logits.scatter_add_(1, targets.where(taken, 0)[:, None], -taken[:, None].to(logits.dtype))
    logits.mul_(taken[:, None])
