"""Which products of rank components take part in the expansion, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pera_lightning.errors import ConfigError
from pera_lightning.families import FAMILIES, Terms
from pera_lightning.form_bounds import LISTED, check_order, check_rank, check_terms, column_count, count_of_degree
from pera_lightning.functional.observation import is_faked


def monomials(rank: int, order: int = 2, terms: Terms = "full") -> list[tuple[int, ...]]:
    """Index tuples of the monomials of degree 2 to `order`, in the order of the coefficients h.

    Args:
        rank: Number of rank components, r.
        order: Highest degree.
        terms: "full" (all), "square" (pure powers, paper Eq. 10) or "cross" (mixed ones, Eq. 11).

    Returns:
        Non-decreasing index tuples as of `itertools.combinations_with_replacement(range(rank), degree)`,
        degree 2 first, then 3, and so on. Empty when order is 1.

    Raises:
        ConfigError: rank, order or terms is out of range, or there are more than a million.
    """
    count = expanded_rank(rank, order, terms) - rank
    if count > LISTED:
        raise ConfigError(
            "There are too many monomials for a list.",
            got=f"{count:,} of rank {rank:,}, order {order} and terms {terms!r}",
            expected=f"at most {LISTED:,}",
            fix="lower the rank or the order; expanded_rank counts them",
        )
    return [indices for degree in range(2, order + 1) for indices in monomials_of_degree(rank, degree, terms)]


def expanded_rank(rank: int, order: int = 2, terms: Terms = "full") -> int:
    """Number K of columns after the expansion: the `rank` plain ones and one per monomial.

    For order 2: `2 r + r (r - 1) / 2` with all terms, `2 r` with square terms only.

    Raises:
        ConfigError: rank, order or terms is out of range.
    """
    check_rank(rank)
    check_order(order)
    check_terms(terms)
    return column_count(rank, order, terms)


@lru_cache(maxsize=256)
def monomials_of_degree(rank: int, degree: int, terms: Terms) -> tuple[tuple[int, ...], ...]:
    """Monomials of one degree >= 2."""
    return tuple(FAMILIES[terms].indices(rank, degree))


# torch.compile calls this once and takes the result as a constant; it would not see through the cache.
@torch.compiler.assume_constant_result
def degree_indices(rank: int, degree: int, terms: Terms, device: torch.device) -> tuple[Tensor, ...]:
    """The monomials of one degree as `degree` int64 index tensors of shape (count,) each.

    Kept per device, so that a training step sends no index from the host to the GPU.
    """
    return _cached_indices(rank, degree, terms, device)


def _cached_indices(rank: int, degree: int, terms: Terms, device: torch.device) -> tuple[Tensor, ...]:
    def make() -> tuple[Tensor, ...]:
        table = torch.tensor(monomials_of_degree(rank, degree, terms), dtype=torch.int64, device="cpu")
        return tuple(column.contiguous() for column in table.reshape(-1, degree).T.to(device))

    return kept_tables((rank, degree, terms, device), make)


class Products(NamedTuple):
    """The products of one degree, for looking members up and for adding up what they hand back."""

    degree: int
    size: int
    members: Tensor
    """int64 (degree * size,): the first members of all products, then the second ones, ..."""
    left_out: Tensor
    """0/1 matrix (rank, degree * size): whether product c has i at place degree - 1 - p, at (i, p * size + c). At
    degree 2 that is the place beside p."""


def product_tables(
    rank: int, order: int, terms: Terms, device: torch.device, dtype: torch.dtype
) -> tuple[Products, ...]:
    """One entry for each degree that has products; none where they are powers, which need no table."""
    key = (rank, order, terms, device, dtype)
    # Without the detour where they are there: this runs at every call.
    found = None if is_faked() else _tables.get(key)
    return kept_tables(key, lambda: _make_products(*key)) if found is None else found


def _make_products(
    rank: int, order: int, terms: Terms, device: torch.device, dtype: torch.dtype
) -> tuple[Products, ...]:
    components = torch.arange(rank, device=device)[:, None]
    found = []
    for degree in range(2, order + 1):
        count = count_of_degree(rank, degree, terms)
        if count and not FAMILIES[terms].every_power_alone:
            places = _cached_indices(rank, degree, terms, device)
            left_out = torch.cat([components == place for place in reversed(places)], 1).to(dtype)
            found.append(Products(degree, count, torch.cat(places), left_out))
    return tuple(found)


# Constants by what they were made from.
_tables: dict[Hashable, tuple[Any, ...]] = {}


def kept_tables(key: Hashable, make: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...]:
    """The tensors that `make` gives, made once for each key; for constants that are small and never changed."""
    # A fake mode takes no real tensors, and its own are none that anybody else could use. A compiler has its way with
    # both.
    kept = torch.compiler.is_compiling() or not is_faked()
    found = _tables.get(key) if kept else None
    if found is None:
        # A tensor made in inference mode could not be saved for a later backward pass.
        with torch.inference_mode(mode=False):
            found = make()
        # While torch.export looks on they are no real tensors either.
        if kept and all(type(table) is Tensor for table in tree_leaves(found) if isinstance(table, Tensor)):
            _tables[key] = found
    return found
