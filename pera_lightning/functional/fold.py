"""The expansion of rank components and its gradient, without autograd and with as little memory traffic as possible."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pera_lightning.config import Terms
from pera_lightning.functional.expansion import products
from pera_lightning.functional.monomials import column_count, count_of_degree, degree_indices, degree_selections

# From this many expanded entries on, a CPU is faster component by component: everything is written once and nothing
# is gathered. Below it, and on GPUs, the number of operations counts.
LARGE = 1 << 18


def expand_rows(rows: Tensor, order: int, terms: Terms) -> Tensor:
    """`expand(rows, 0, order, terms)` without a graph.

    Args:
        rows: The rank components, shape (rank, columns): A, or B transposed.
        order: Highest degree.
        terms: Which monomials take part.

    Returns:
        Shape (K, columns).
    """
    if order == 1:
        return rows
    rank, columns = rows.shape
    expanded = rows.new_empty(column_count(rank, order, terms), columns)
    expanded[:rank] = rows
    start = rank
    for degree in range(2, order + 1):
        count = count_of_degree(rank, degree, terms)
        block = expanded[start : start + count]
        if _componentwise(block, degree, terms):
            for component, partners, pairs in _pairs(rows, block, terms):
                torch.mul(partners, component, out=pairs)
        elif count:
            block.copy_(products(rows, 0, degree, terms))
        start += count
    return expanded


def fold(grad: Tensor, rows: Tensor, order: int, terms: Terms) -> Tensor:
    """The gradient of the rank components, given that of their expansion: the transposed Jacobian of `expand_rows`.

    Each product hands its gradient to every one of its members, times the other members. Nothing larger than the
    expansion is made, and unlike with scattered additions a GPU gives the same bits every time.

    Args:
        grad: Gradient of `expand_rows(rows, order, terms)`, shape (K, columns).
        rows: The rank components, shape (rank, columns), the dtype of `grad`.
        order: Highest degree.
        terms: Which monomials take part.

    Returns:
        Shape (rank, columns), the dtype of `grad`.
    """
    if order == 1:
        return grad
    rank = rows.shape[0]
    folded = grad[:rank].clone()
    start = rank
    for degree in range(2, order + 1):
        count = count_of_degree(rank, degree, terms)
        block = grad[start : start + count]
        if _componentwise(block, degree, terms):
            _fold_pairs(folded, block, rows, terms)
        elif count:
            _fold_products(folded, block, rows, degree, terms)
        start += count
    return folded


def _componentwise(block: Tensor, degree: int, terms: Terms) -> bool:
    return degree == 2 and terms != "square" and block.device.type == "cpu" and block.numel() >= LARGE


def _pairs(rows: Tensor, block: Tensor, terms: Terms) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Per component: itself (columns,), its partners (count, columns) and their part of `block`, of the same shape."""
    first = 1 if terms == "cross" else 0
    counts = list(range(rows.shape[0] - first, 0, -1))
    for component, count, pairs in zip(rows.unbind(), counts, block.split(counts), strict=False):
        yield component, rows[-count:], pairs


def _fold_pairs(folded: Tensor, grad: Tensor, rows: Tensor, terms: Terms) -> None:
    for target, (component, partners, pairs) in zip(folded.unbind(), _pairs(rows, grad, terms), strict=False):
        target.add_((pairs * partners).sum(0))
        folded[-partners.shape[0] :].addcmul_(pairs, component)


def _fold_products(folded: Tensor, grad: Tensor, rows: Tensor, degree: int, terms: Terms) -> None:
    if terms == "square":
        folded.addcmul_(grad, rows ** (degree - 1), value=degree)
        return
    rank = rows.shape[0]
    indices = degree_indices(rank, degree, terms, rows.device)
    selections = degree_selections(rank, degree, terms, rows.device, rows.dtype)
    for position, selection in enumerate(selections):
        share = grad
        for other, index in enumerate(indices):
            if other != position:
                share = rows.index_select(0, index).mul_(share)
        # The sum over the products of a member, as a product with a 0/1 matrix.
        folded.addmm_(selection, share)
