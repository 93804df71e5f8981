"""The constant factor on the polynomial coefficients (`PeraConfig.coefficient_scale`)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from pera_lightning.families import Terms
from pera_lightning.form_bounds import count_of_degree


def degree_factors(scale: float | Literal["auto"], order: int, in_features: int) -> tuple[float, ...]:
    """The constant factor of the coefficients of degree 2, 3, ... up to the order.

    Args:
        scale: A factor for all, or "auto": `sqrt(3 * in_features) ** (d - 1)` for degree d, because each further factor
            of a product shrinks it by the RMS of a Kaiming-uniform A.
        order: Highest degree.
        in_features: Length of the rows of A.
    """
    if scale != "auto":
        return (float(scale),) * (order - 1)
    return tuple(math.sqrt(3 * in_features) ** (degree - 1) for degree in range(2, order + 1))


def scaled_coefficients(
    h: Tensor, scale: float | Literal["auto"], rank: int, order: int, terms: Terms, in_features: int
) -> Tensor:
    """Coefficients h times their constant factor; differentiable.

    Args:
        h: Shape (number of monomials,), degree 2 first.
        scale: See `degree_factors`.
        rank: Number of rank components.
        order: Highest degree.
        terms: Which monomials take part.
        in_features: Length of the rows of A.

    Returns:
        Shape and dtype of h.
    """
    if scale == 1.0:
        return h
    factors = degree_factors(scale, order, in_features)
    counts = [count_of_degree(rank, degree, terms) for degree in range(2, order + 1)]
    return torch.cat([block * factor for block, factor in zip(h.split(counts), factors, strict=True)])
