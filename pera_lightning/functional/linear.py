"""The adapter's contribution to a linear layer's output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from pera_lightning.errors import ConfigError
from pera_lightning.families import Terms
from pera_lightning.form_bounds import check_dropout
from pera_lightning.functional.call import Options, Path, call_of, chosen_path
from pera_lightning.functional.fused.autograd import PeraFunction
from pera_lightning.functional.fused.fused import FusedFunction, fused_call, uses_kernels
from pera_lightning.functional.fused.fused_operator import add_as_operator
from pera_lightning.functional.observation import is_observed, is_transformed
from pera_lightning.functional.operands import Operands, prepare
from pera_lightning.functional.precision import (
    as_matrix,
    autocast_enabled,
    in_dtype,
    product_dtype,
    unflattened,
    unflattened_on_record,
)
from pera_lightning.functional.weight import check_shapes

PATHS: tuple[Path, ...] = get_args(Path)


def pera_linear(
    x: Tensor,
    A: Tensor,
    B: Tensor,
    h: Tensor | None = None,
    *,
    order: int = 2,
    terms: Terms = "full",
    scaling: float = 1.0,
    dropout: float = 0.0,
    training: bool = False,
    path: Path = "auto",
) -> Tensor:
    """What a PERA adapter adds to the output of its frozen linear layer: `dropout(x) dW^T`.

    Args:
        x: Input, shape (..., in), floating; no leading dimension, several and empty ones are all right.
        A: Shape (rank, in), floating.
        B: Shape (out, rank), the dtype of A.
        h: Coefficients, shape (number of monomials,); None when there are none.
        order: Highest degree; 1 is LoRA.
        terms: Which monomials take part, see `monomials`.
        scaling: Factor on the result.
        dropout: Probability of zeroing an entry of x (the others grow by `1 / (1 - dropout)`).
        training: Whether dropout is active.
        path: How to compute. "factored": two thin products through the K expanded columns. "dense": build dW,
            then one product. "implicit": no expansion, for few tokens. "auto" takes the cheapest, by counting.

    Returns:
        Tensor of shape (..., out) and the dtype of x (under autocast: autocast's dtype). A bias is no part
        of the adapter.

    Raises:
        ConfigError: Shapes do not fit, or an option is out of range.
    """
    check_dropout(dropout)
    if path not in PATHS:
        raise ConfigError(
            "Unknown way to compute.",
            got=repr(path),
            expected=" or ".join(map(repr, PATHS)),
            fix="use 'auto'",
        )
    if x.dim() == 0 or x.shape[-1] != A.shape[-1]:
        raise ConfigError(
            "The input does not fit the adapter.",
            got=f"x of shape {tuple(x.shape)}",
            expected=f"(..., {A.shape[-1]})",
            fix="give an x whose last dimension is the layer's in_features",
        )
    check_shapes(A, B, h, order=order, terms=terms)
    options = Options(order, terms, scaling, (1.0,) * (order - 1), dropout if training else 0.0, path)
    return add_adapter(None, x, A, B, h, options)


def add_adapter(output: Tensor | None, x: Tensor, A: Tensor, B: Tensor, h: Tensor | None, options: Options) -> Tensor:
    """`output + pera_linear(x, ...)` in one go, without checks.

    Args:
        output: The base layer's output, shape (..., out); None stands for zero.
        x: Shape (..., in).
        A: Shape (rank, in).
        B: Shape (out, rank).
        h: Coefficients without their constant factors; None at order 1.
        options: The adapter's form, and how to compute.

    Returns:
        Shape (..., out), the dtype of `output` if there is one, else the one `product_dtype` tells.
    """
    dtype, kind = product_dtype(x), x.device.type
    if output is not None and output.dtype is not dtype:
        return output + add_adapter(None, x, A, B, h, options).to(output.dtype)
    if options.order == 1:
        h = None
    if autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):
            return _add(output, x, A, B, h, options, dtype)
    return _add(output, x, A, B, h, options, dtype)


def _add(
    output: Tensor | None, x: Tensor, A: Tensor, B: Tensor, h: Tensor | None, options: Options, dtype: torch.dtype
) -> Tensor:
    """By whatever serves these tensors here."""
    compiled = torch.compiler.is_compiling()
    if not compiled and is_transformed():
        return _composed(output, x, A, B, h, options, dtype)
    if _kernels_serve(x, options) and _alike(x, A, B, h):
        result = (add_as_operator if compiled else _add_fused)(output, x, A, B, h, options, dtype)
        if result is not None:
            return result
    if compiled:
        return _composed(output, x, A, B, h, options, dtype)
    rank, n = A.shape
    call = call_of(options, x.numel() // n, rank, n, B.shape[0], dtype, x.device.type)
    return PeraFunction.apply(output, x, A, B, h, call)


def _kernels_serve(x: Tensor, options: Options) -> bool:
    # Without asking where the answer is known: this runs at every call.
    return x.device.type != "cpu" and options.path != "implicit" and uses_kernels(x.device)


def _alike(x: Tensor, A: Tensor, B: Tensor, h: Tensor | None) -> bool:
    """Whether the factors have one dtype and lie where x does, as kernels take them."""
    dtype = A.dtype
    return B.dtype is dtype and (h is None or h.dtype is dtype) and A.device == B.device == x.device


def _add_fused(
    output: Tensor | None, x: Tensor, A: Tensor, B: Tensor, h: Tensor | None, options: Options, dtype: torch.dtype
) -> Tensor | None:
    """With kernels; None if they do not serve this shape."""
    factor_dtype, device = A.dtype, x.device
    rank, n = A.shape
    direct = device.type != "meta" and not is_observed(x)
    # Triton compiles and starts on the current device.
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            return _add_fused(output, x, A, B, h, options, dtype)
    call = fused_call(options, x.numel() // n, rank, n, B.shape[0], dtype, factor_dtype, device, direct)
    return None if call is None else FusedFunction.apply(output, x, A, B, h, call)


def _composed(
    output: Tensor | None, x: Tensor, A: Tensor, B: Tensor, h: Tensor | None, options: Options, dtype: torch.dtype
) -> Tensor:
    """By plain differentiable operations.

    A compiler sees through them, and decides itself what to keep and what to compute again; a tracer and the
    transforms of torch.func see through nothing else.
    """
    rank, n = A.shape
    path = chosen_path(options, x.numel() // n, rank, n, B.shape[0], x.device.type)
    dropped = F.dropout(x, options.dropout) if options.dropout else x
    operands = prepare(path, A, B, h, options.form(), dtype)
    return apply_operands(operands, output, dropped, dtype, unflattened_on_record)


def apply_operands(
    operands: Operands,
    output: Tensor | None,
    x: Tensor,
    dtype: torch.dtype,
    unflatten: Callable[[Tensor, Sequence[int]], Tensor] = unflattened,
) -> Tensor:
    """`output` plus what operands of this dtype make of x (..., in).

    Args:
        operands: Of the adapter.
        output: Shape (..., out); None stands for zero.
        x: Shape (..., in).
        dtype: Of the products.
        unflatten: `unflattened_on_record` where a graph may be recorded.

    Returns:
        Shape (..., out), the dtype of `output` if there is one.
    """
    flat, is_matrix = in_dtype(as_matrix(x), dtype), x.dim() == 2
    if output is not None and output.dtype == dtype:
        result = operands.add_to(as_matrix(output), flat)
        return result if is_matrix else unflatten(result, output.shape)
    part = operands.add_to(None, flat)
    part = part if is_matrix else unflatten(part, (*x.shape[:-1], part.shape[-1]))
    return part if output is None else output + part.to(output.dtype)


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd has to know of a result of these tensors."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
