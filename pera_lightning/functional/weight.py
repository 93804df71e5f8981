"""The weight change that an adapter stands for, as a dense matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from pera_lightning.errors import ConfigError
from pera_lightning.families import Terms
from pera_lightning.functional.expansion.expansion import expand
from pera_lightning.functional.expansion.monomials import expanded_rank


def delta_weight(
    A: Tensor,
    B: Tensor,
    h: Tensor | None = None,
    *,
    order: int = 2,
    terms: Terms = "full",
    scaling: float = 1.0,
) -> Tensor:
    """The dense weight change of a PERA adapter.

        dW = scaling * ( sum_i b_i a_i^T + sum_c h_c (prod_{i in c} b_i) (prod_{i in c} a_i)^T )

    Args:
        A: Shape (rank, in), floating.
        B: Shape (out, rank), the dtype of A.
        h: Coefficients, shape (number of monomials,), in the order of `monomials`; None when there are none.
        order: Highest degree.
        terms: Which monomials take part.
        scaling: Factor on the whole.

    Returns:
        Tensor of shape (out, in) and the dtype of A.

    Raises:
        ConfigError: Shapes do not fit, or order or terms is out of range.
    """
    left, right = expanded_factors(A, B, h, order=order, terms=terms)
    return (left @ right) * scaling


def expanded_factors(A: Tensor, B: Tensor, h: Tensor | None, *, order: int, terms: Terms) -> tuple[Tensor, Tensor]:
    """The factors of the equivalent LoRA of rank K.

    Returns:
        `(left, right)` of shapes (out, K) and (K, in); the coefficients are in `left`, the scaling is in
        neither: `dW = scaling * left @ right`.

    Raises:
        ConfigError: Shapes do not fit, or order or terms is out of range.
    """
    check_shapes(A, B, h, order=order, terms=terms)
    left, right = expand(B, 1, order, terms), expand(A, 0, order, terms)
    if h is not None and h.numel() > 0:
        rank = A.shape[0]
        left = torch.cat([left[:, :rank], left[:, rank:] * h.to(left.dtype)], dim=1)
    return left, right


def check_shapes(A: Tensor, B: Tensor, h: Tensor | None, *, order: int, terms: Terms) -> None:
    """Raise ConfigError unless A, B and h belong to one adapter of this order and these terms."""
    if A.dim() != 2 or B.dim() != 2 or A.shape[0] != B.shape[1]:
        raise ConfigError(
            "The factors do not fit together.",
            got=f"A {tuple(A.shape)}, B {tuple(B.shape)}",
            expected="A (rank, in) and B (out, rank) of the same rank",
            fix="check for a transposed factor",
        )
    rank = A.shape[0]
    count = expanded_rank(rank, order, terms) - rank
    given = None if h is None else tuple(h.shape)
    if given != (count,) and not (count == 0 and h is None):
        raise ConfigError(
            "The coefficients h do not fit the expansion.",
            got=f"h of shape {given}",
            expected=f"shape ({count},) for rank {rank}, order {order}, terms {terms!r}",
            fix="give one coefficient per entry of monomials(rank, order, terms)",
        )
