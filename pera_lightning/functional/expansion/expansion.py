"""The polynomial expansion of one low-rank factor."""

from __future__ import annotations

import torch
from torch import Tensor

from pera_lightning.families import FAMILIES, Terms
from pera_lightning.form_bounds import check_order, check_terms, count_of_degree
from pera_lightning.functional.expansion.monomials import degree_indices


def expand(factor: Tensor, rank_dim: int, order: int = 2, terms: Terms = "full") -> Tensor:
    """The factor with the products of its rank components appended (paper Eq. 6 to 8, without coefficients).

    Args:
        factor: A of shape (rank, in) with `rank_dim=0`, or B of shape (out, rank) with `rank_dim=1`.
        rank_dim: The dimension that counts the rank components.
        order: Highest degree of the products; 1 returns the factor as it is.
        terms: Which monomials take part, see `monomials`.

    Returns:
        Tensor of the factor's dtype, `rank_dim` grown to K = `expanded_rank(rank, order, terms)`: first the
        plain components, then one element-by-element product per monomial.

    Raises:
        ConfigError: order or terms is out of range.
    """
    check_order(order)
    check_terms(terms)
    if order == 1:
        return factor
    blocks = [products(factor, rank_dim, degree, terms) for degree in range(2, order + 1)]
    return torch.cat([factor, *blocks], dim=rank_dim)


def products(factor: Tensor, rank_dim: int, degree: int, terms: Terms) -> Tensor:
    """The element-by-element products of one degree, stacked along `rank_dim`."""
    if FAMILIES[terms].every_power_alone:
        return factor**degree
    rank = factor.shape[rank_dim]
    if count_of_degree(rank, degree, terms) == 0:
        return factor.narrow(rank_dim, 0, 0)
    first, *others = degree_indices(rank, degree, terms, factor.device)
    product = factor.index_select(rank_dim, first)
    for index in others:
        product = product * factor.index_select(rank_dim, index)
    return product
