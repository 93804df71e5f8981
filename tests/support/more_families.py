"""Families of monomials that the package does not have, of other kinds than its own: a family is one class."""

from __future__ import annotations

from collections.abc import Iterable

from pera_lightning.families import Family


class Cubes(Family):
    """Third powers of single components; nothing of another degree."""

    def indices(self, rank: int, degree: int) -> Iterable[tuple[int, ...]]:
        return ((index,) * 3 for index in range(rank if degree == 3 else 0))

    def count(self, rank: int, degree: int) -> int:
        return rank if degree == 3 else 0


class Neighbours(Family):
    """Products of two components in a row: the first and the last one are part of fewer than the others."""

    def indices(self, rank: int, degree: int) -> Iterable[tuple[int, ...]]:
        return ((index, index + 1) for index in range(rank - 1 if degree == 2 else 0))

    def count(self, rank: int, degree: int) -> int:
        return rank - 1 if degree == 2 else 0


class FirstPairs(Family):
    """Products of the first component with each of the others, of any degree; at rank 1 none."""

    def indices(self, rank: int, degree: int) -> Iterable[tuple[int, ...]]:
        return ((0,) * (degree - 1) + (index,) for index in range(1, rank))

    def count(self, rank: int, degree: int) -> int:
        return rank - 1


MORE_FAMILIES: dict[str, Family] = {"cubes": Cubes(), "neighbours": Neighbours(), "first_pairs": FirstPairs()}
