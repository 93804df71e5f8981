"""What an adapter's function is, apart from its tensors."""

from __future__ import annotations

from typing import NamedTuple

from pera_lightning.families import Terms


class Form(NamedTuple):
    """Order, terms and constant factors."""

    order: int
    terms: Terms
    scaling: float
    """Of the whole; includes dropout's 1 / (1 - dropout) while it acts."""
    factors: tuple[float, ...]
    """Of the coefficients h of degree 2, 3, ... up to the order; see `degree_factors`."""

    # No properties, here and in `Options`: torch 2.8 does not compile those of NamedTuples.
    def plain(self) -> bool:
        """Whether nothing but h multiplies the products."""
        return self.scaling == 1.0 and all(factor == 1.0 for factor in self.factors)
