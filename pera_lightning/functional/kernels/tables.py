"""What the kernels look up about a form: which components each product has, and what it is multiplied with."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pera_lightning.families import Terms
from pera_lightning.form_bounds import column_count
from pera_lightning.functional.expansion.monomials import kept_tables, monomials_of_degree
from pera_lightning.functional.form import Form

MOST_COLUMNS = 1 << 16
"""Larger K take plain operations: their tables would take seconds to make."""
WIDTH_STEP = 16
"""The K columns are padded with zeros to a multiple of it: matrix units work in such steps, and rows stay aligned."""
ROW_STEP = 16
"""Both tables of products have rows up to a multiple of it, and one step more, for programs to read past the end."""


def padded_width(form: Form, rank: int) -> int:
    """K, padded."""
    return -(-column_count(rank, form.order, form.terms) // WIDTH_STEP) * WIDTH_STEP


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """What products and sums of entries are taken in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Tables(NamedTuple):
    """Constants of a form and a rank on one device."""

    members: Tensor
    """int32 (rows, order): the components of each product; -1 where it has fewer."""
    scales: Tensor
    """(rows,): constant factors of the products of B, scaling included; the coefficients h come on top."""
    entries: Tensor
    """int32 (components, per component, order + 1): of each component, the products it is part of: which one, its
    exponent there, and the components that are left when it is taken out once; -1 where there are fewer. A component
    that is part of fewer products than another has entries of exponent 0 in their place."""

    @property
    def per_component(self) -> int:
        """How many products a component is part of, at most."""
        return self.entries.shape[1]


def tables_of(form: Form, rank: int, dtype: torch.dtype, device: torch.device) -> Tables:
    """The tables, made once.

    Args:
        form: Order, terms and constant factors.
        rank: Number of components.
        dtype: Of the scales.
        device: Of the tables.
    """
    return Tables(*kept_tables(("kernels", form, rank, dtype, device), lambda: _make(form, rank, dtype, device)))


def _make(form: Form, rank: int, dtype: torch.dtype, device: torch.device) -> Tables:
    every = _products(rank, form.order, form.terms)
    rows = -(-len(every) // ROW_STEP) * ROW_STEP + ROW_STEP
    members = [_padded(product, form.order) for product in every]
    members += [[0] + [-1] * (form.order - 1)] * (rows - len(every))
    factors = (1.0, *form.factors)
    scales = [form.scaling * factors[len(product) - 1] for product in every] + [0.0] * (rows - len(every))
    return Tables(
        torch.tensor(members, dtype=torch.int32, device=device),
        torch.tensor(scales, dtype=dtype, device=device),
        _entries(every, rank, form.order).to(device),
    )


def _products(rank: int, order: int, terms: Terms) -> list[tuple[int, ...]]:
    higher = (product for degree in range(2, order + 1) for product in monomials_of_degree(rank, degree, terms))
    return [(component,) for component in range(rank)] + list(higher)


def _entries(every: list[tuple[int, ...]], rank: int, order: int) -> Tensor:
    found: list[list[list[int]]] = [[] for _ in range(rank)]
    for k, product in enumerate(every):
        for component in set(product):
            others = list(product)
            others.remove(component)
            found[component].append([k, product.count(component), *_padded(others, order - 1)])
    most = max(map(len, found))
    for component, entries in enumerate(found):
        # Its own row, times 0.
        entries += [[component, 0, *_padded([], order - 1)]] * (most - len(entries))
    table = torch.zeros(-(-rank // ROW_STEP) * ROW_STEP, most, order + 1, dtype=torch.int32, device="cpu")
    table[:rank] = torch.tensor(found, dtype=torch.int32, device="cpu")
    return table


def _padded(components: tuple[int, ...] | list[int], length: int) -> list[int]:
    return list(components) + [-1] * (length - len(components))
