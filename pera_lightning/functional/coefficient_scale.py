"""The constant factor on the polynomial coefficients (`PeraConfig.coefficient_scale`)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from pera_lightning.config import Terms
from pera_lightning.functional.monomials import count_of_degree


def scaled_coefficients(
    h: Tensor, scale: float | Literal["auto"], rank: int, order: int, terms: Terms, in_features: int
) -> Tensor:
    """Coefficients h times their constant factor; differentiable.

    Args:
        h: Shape (number of monomials,), degree 2 first.
        scale: A factor for all, or "auto": `sqrt(3 * in_features) ** (d - 1)` for degree d.
        rank: Number of rank components.
        order: Highest degree.
        terms: Which monomials take part.
        in_features: Length of the rows of A.

    Returns:
        Shape and dtype of h.
    """
    if scale != "auto":
        return h * scale if scale != 1.0 else h
    # 1 / RMS of a Kaiming-uniform A: each further factor of a product shrinks it by this much.
    inverse_rms = math.sqrt(3 * in_features)
    degrees = range(2, order + 1)
    counts = [count_of_degree(rank, degree, terms) for degree in degrees]
    blocks = zip(h.split(counts), degrees, strict=True)
    return torch.cat([block * inverse_rms ** (degree - 1) for block, degree in blocks])
