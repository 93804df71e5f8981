"""PERA from its equation, with explicit loops: slow, and shared with nothing in the package."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

TAKES_PART = {
    "full": lambda indices: True,
    "square": lambda indices: len(set(indices)) == 1,
    "cross": lambda indices: len(set(indices)) > 1,
}


def reference_monomials(rank: int, order: int, terms: str) -> list[tuple[int, ...]]:
    found = []
    for degree in range(2, order + 1):
        for indices in itertools.product(range(rank), repeat=degree):
            if list(indices) == sorted(indices) and TAKES_PART[terms](indices):
                found.append(indices)
    return found


def reference_delta_weight(A: Tensor, B: Tensor, h: Tensor | None, order: int, terms: str, scaling: float) -> Tensor:
    """Entry by entry, in float64."""
    return scaling * reference_delta_weight_of(reference_monomials(A.shape[0], order, terms), A, B, h)


def reference_delta_weight_of(products: list[tuple[int, ...]], A: Tensor, B: Tensor, h: Tensor | None) -> Tensor:
    """The same for any products, without the scaling."""
    A, B = A.double(), B.double()
    rank, n = A.shape
    m = B.shape[0]
    weight = torch.zeros(m, n, dtype=torch.float64)
    for i in range(rank):
        weight += torch.outer(B[:, i], A[i])
    for c, indices in enumerate(products):
        left, right = torch.ones(m, dtype=torch.float64), torch.ones(n, dtype=torch.float64)
        for i in indices:
            left, right = left * B[:, i], right * A[i]
        weight += h[c].double() * torch.outer(left, right)
    return weight
