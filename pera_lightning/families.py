"""The families of monomials that an expansion can be made of: everything that tells one from another.

A new family is a class here, an entry in `FAMILIES` and a name in `Terms`. Nothing else compares names of families: the
rest of the package asks the entry. `indices` and `count` are all that it has to say; the two class variables let
some computations do without a table of indices.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from itertools import combinations_with_replacement
from typing import ClassVar, Literal

Terms = Literal["full", "square", "cross"]
"""What users call them; a literal, so that `--help` can list them."""


class Family(ABC):
    """Which products of rank components take part, of each degree from 2 on; of some degrees there may be none."""

    every_power_alone: ClassVar[bool] = False
    """Whether the products of each degree are the powers of all components, in their order, and nothing else."""
    first_partner: ClassVar[int | None] = None
    """Where the pairs of degree 2 are all (i, j) with j >= i + n, in this order: that n. None: they are looked up."""

    @abstractmethod
    def indices(self, rank: int, degree: int) -> Iterable[tuple[int, ...]]:
        """The members of each product of one degree, not decreasing, in the order of the coefficients h."""

    @abstractmethod
    def count(self, rank: int, degree: int) -> int:
        """How many `indices` there are, in closed form."""


class Full(Family):
    """All products (paper Eq. 6 to 8)."""

    first_partner = 0

    def indices(self, rank: int, degree: int) -> Iterable[tuple[int, ...]]:
        """See `Family`."""
        return combinations_with_replacement(range(rank), degree)

    def count(self, rank: int, degree: int) -> int:
        """See `Family`."""
        return math.comb(rank + degree - 1, degree)


class Square(Family):
    """Powers of single components (paper Eq. 10)."""

    every_power_alone = True

    def indices(self, rank: int, degree: int) -> Iterable[tuple[int, ...]]:
        """See `Family`."""
        return ((index,) * degree for index in range(rank))

    def count(self, rank: int, degree: int) -> int:
        """See `Family`."""
        return rank


class Cross(Family):
    """Products of components that are not all the same (paper Eq. 11)."""

    first_partner = 1

    def indices(self, rank: int, degree: int) -> Iterable[tuple[int, ...]]:
        """See `Family`."""
        every = combinations_with_replacement(range(rank), degree)
        return (indices for indices in every if indices[0] != indices[-1])

    def count(self, rank: int, degree: int) -> int:
        """See `Family`."""
        return math.comb(rank + degree - 1, degree) - rank


FAMILIES: dict[Terms, Family] = {"full": Full(), "square": Square(), "cross": Cross()}
"""Name -> family, in the order in which messages list them."""


def part_of(indices: tuple[int, ...]) -> str:
    """What inspections and pictures call the part of dW that a product belongs to."""
    if len(indices) > 2:
        return f"degree {len(indices)}"
    return "square" if indices[0] == indices[1] else "cross"
