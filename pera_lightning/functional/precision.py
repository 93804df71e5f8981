"""In which dtype the adapter computes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from pera_lightning.config import Terms
from pera_lightning.functional.monomials import count_of_degree


def factor_dtype(base: torch.dtype) -> torch.dtype:
    """What the factors are made in: float32 over half precision, else the base's own dtype."""
    return torch.float32 if base in (torch.float16, torch.bfloat16) else base


def product_dtype(x: Tensor) -> torch.dtype:
    """What the products with x are taken in: the dtype of x, or autocast's."""
    kind = x.device.type
    if x.dtype != torch.float64 and _autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x.dtype


def without_autocast(kind: str) -> AbstractContextManager[object]:
    """Autocast off for this kind of device; the dtypes are the adapter's own business."""
    return torch.autocast(kind, enabled=False) if _autocast_enabled(kind) else nullcontext()


def _autocast_enabled(kind: str) -> bool:
    # torch knows no autocast for tensors without memory, and raises.
    return kind != "meta" and torch.is_autocast_enabled(kind)


def balanced(A: Tensor, B: Tensor, columns: Tensor, order: int, terms: Terms) -> tuple[Tensor, Tensor, Tensor]:
    """The same adapter with factors of magnitude one and the difference in its coefficients. Differentiable.

    float16 ends at 6e-8, and the product of two entries of B soon is smaller than that. Magnitudes are powers of two,
    so that nothing is rounded.
    """
    scale_A, scale_B = _magnitude(A), _magnitude(B)
    rank = A.shape[0]
    counts = [rank, *(count_of_degree(rank, degree, terms) for degree in range(2, order + 1))]
    parts = [part * (scale_A * scale_B) ** degree for degree, part in enumerate(columns.split(counts), start=1)]
    return A / scale_A, B / scale_B, torch.cat(parts)


@torch.no_grad()
def _magnitude(factor: Tensor) -> Tensor:
    largest = factor.abs().amax()
    return torch.where(largest > 0, torch.exp2(torch.ceil(torch.log2(largest))), torch.ones_like(largest))
