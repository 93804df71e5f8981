"""In which dtype the adapter computes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

_NOTHING: AbstractContextManager[object] = nullcontext()


def factor_dtype(base: torch.dtype) -> torch.dtype:
    """What the factors are made in: float32 over half precision, else the base's own dtype."""
    return torch.float32 if base in (torch.float16, torch.bfloat16) else base


def product_dtype(x: Tensor) -> torch.dtype:
    """What the products with x are taken in: the dtype of x, or autocast's."""
    dtype = x.dtype
    if dtype is not torch.float64 and autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return dtype


def in_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor.to(dtype)`, without the call where there is nothing to do: a tenth of what a small product costs."""
    return tensor if tensor.dtype is dtype else tensor.to(dtype)


def as_matrix(tensor: Tensor) -> Tensor:
    """(..., features) as (tokens, features)."""
    return tensor if tensor.dim() == 2 else tensor.reshape(-1, tensor.shape[-1])


def unflattened(matrix: Tensor, shape: Sequence[int]) -> Tensor:
    """A matrix that nobody else has, (tokens, features), as (..., features), where nobody records it.

    Not a view to autograd, which refuses in-place operations on views that come out of a Function or were made without
    a graph.
    """
    return matrix.view(shape).data


def unflattened_on_record(matrix: Tensor, shape: Sequence[int]) -> Tensor:
    """`unflattened`, differentiable, for compilers and tracers too; it takes twice the time."""
    return torch.ops.aten._unsafe_view.default(matrix, shape)


def without_autocast(kind: str) -> AbstractContextManager[object]:
    """Autocast off for this kind of device; the dtypes are the adapter's own business."""
    return torch.autocast(kind, enabled=False) if autocast_enabled(kind) else _NOTHING


def autocast_enabled(kind: str) -> bool:
    """Whether autocast is on for this kind of device."""
    # torch knows no autocast for tensors without memory, and raises.
    return kind != "meta" and torch.is_autocast_enabled(kind)
