"""The whole fused adapter as one operator of torch, which a compiler sees as a piece.

So a compiled model keeps no more between the passes than an eager one: x, A, B, h and a seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from pera_lightning.errors import ConfigError
from pera_lightning.form_bounds import column_count
from pera_lightning.functional.call import Call, Options, cheapest_paths
from pera_lightning.functional.form import Form
from pera_lightning.functional.fused.dropout_mask import met_dropout
from pera_lightning.functional.fused.fused import FusedCall, Kept, fused_backward, fused_form, fused_forward
from pera_lightning.functional.fused.gradients import Wanted
from pera_lightning.functional.kernels.tables import MOST_COLUMNS
from pera_lightning.functional.precision import without_autocast

_CALL = (
    "int order, str terms, float scaling, float[] factors, ScalarType dtype, float dropout, str forward_path, "
    "str backward_path"
)
_TENSORS = "Tensor x, Tensor A, Tensor B, Tensor? h, Tensor? seed"


@torch.library.custom_op(
    "pera_lightning::add_adapter", mutates_args=(), schema=f"(Tensor? output, {_TENSORS}, {_CALL}) -> Tensor"
)
def add_adapter(
    output: Tensor | None, x: Tensor, A: Tensor, B: Tensor, h: Tensor | None, seed: Tensor | None, *call: Any
) -> Tensor:
    """`fused_forward`."""
    with _alone(x.device):
        return fused_forward(_fused(x, A, B, call), output, x, A, B, h, seed)[0]


@add_adapter.register_fake
def _(output: Any, x: Tensor, A: Tensor, B: Tensor, h: Any, seed: Any, *call: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], B.shape[0], dtype=call[4])


def _context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _, x, A, B, h, seed, *ctx.call = inputs
    ctx.save_for_backward(x, A, B, h, seed)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    wanted = list(ctx.needs_input_grad[1:5])
    gradients = adapter_gradients(grad, *ctx.saved_tensors, wanted, *ctx.call)
    found = [value if want else None for value, want in zip(gradients, wanted, strict=True)]
    return grad if ctx.needs_input_grad[0] else None, *found, None, *[None] * len(ctx.call)


add_adapter.register_autograd(_backward, setup_context=_context)


@torch.library.custom_op(
    "pera_lightning::adapter_gradients",
    mutates_args=(),
    schema=f"(Tensor grad, {_TENSORS}, bool[] wanted, {_CALL}) -> (Tensor, Tensor, Tensor, Tensor)",
)
def adapter_gradients(
    grad: Tensor,
    x: Tensor,
    A: Tensor,
    B: Tensor,
    h: Tensor | None,
    seed: Tensor | None,
    wanted: Sequence[bool],
    *call: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`fused_backward`; tensors without entries where a gradient is not wanted."""
    with _alone(x.device):
        found = fused_backward(_fused(x, A, B, call), Kept(x, A, B, h, seed), grad, Wanted(*wanted))
    return tuple(A.new_empty(0) if value is None else value for value in found)  # type: ignore[return-value]


@adapter_gradients.register_fake
def _(
    grad: Any, x: Tensor, A: Tensor, B: Tensor, h: Any, seed: Any, wanted: Sequence[bool], *call: Any
) -> tuple[Tensor, ...]:
    values = zip((x, A, B, h), wanted, strict=True)
    return tuple(
        torch.empty_like(value, memory_format=torch.contiguous_format) if want and value is not None else A.new_empty(0)
        for value, want in values
    )


def add_as_operator(
    output: Tensor | None, x: Tensor, A: Tensor, B: Tensor, h: Tensor | None, options: Options, dtype: torch.dtype
) -> Tensor | None:
    """What a compiler is to see of `output + dropout(x) dW^T`; None if kernels do not serve this shape."""
    rank, n = A.shape
    if column_count(rank, options.order, options.terms) > MOST_COLUMNS:
        return None
    shape = (x.numel() // n, rank, n, B.shape[0])
    order, terms, scaling, factors, dropout, _ = options
    dropout = met_dropout(dropout)
    forward_path, backward_path = cheapest_paths(options, *shape, x.device.type)
    seed = torch.randint(1 << 62, (1,), dtype=torch.int64, device=x.device) if dropout else None
    call = (order, terms, scaling / (1 - dropout), list(factors), dtype, dropout, forward_path, backward_path)
    return torch.ops.pera_lightning.add_adapter(output, x, A, B, h, seed, *call)


@contextmanager
def _alone(device: torch.device) -> Iterator[None]:
    """Without an autocast that is on when a compiled graph runs, and on the device where kernels are to start."""
    with without_autocast(device.type), torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        yield


def _fused(x: Tensor, A: Tensor, B: Tensor, given: tuple[Any, ...]) -> FusedCall:
    order, terms, scaling, factors, dtype, dropout, forward_path, backward_path = given
    call = Call(Form(order, terms, scaling, tuple(factors)), dtype, dropout, forward_path, backward_path, False)
    found = fused_form(call, A.shape[0], A.shape[1], B.shape[0], A.dtype, x.device, direct=True)
    if found is None:
        raise ConfigError(
            "The fused kernels do not work on this GPU, where a compiled model calls them.",
            got=str(x.device),
            expected="kernels that run, as before the model was compiled",
            fix="set the environment variable PERA_KERNELS=0 (the warning before this says what is wrong)",
        )
    return found
