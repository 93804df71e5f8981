"""What the K expanded columns are multiplied with: coefficients, their constant factors and the scaling."""

from __future__ import annotations

import torch
from torch import Tensor

from pera_lightning.families import Terms
from pera_lightning.form_bounds import count_of_degree
from pera_lightning.functional.expansion.monomials import kept_tables
from pera_lightning.functional.form import Form


def float16_magnitude(A: Tensor, form: Form, dtype: torch.dtype) -> Tensor | None:
    """The power of two below the largest entry of A, for products in float16; None in other dtypes and at order 1.

    A product of d entries of A is about that to the power of d, and float16 ends at 6e-8. So one power for each degree
    above the first moves from the products of A to those of B. Nothing is rounded by a power of two.
    """
    if dtype is not torch.float16 or form.order == 1 or A.numel() == 0:
        return None
    with torch.no_grad():
        largest = torch.linalg.vector_norm(A, float("inf"), dtype=torch.promote_types(A.dtype, torch.float32))
        return torch.where(largest > 0, torch.ldexp(torch.ones_like(largest), torch.frexp(largest)[1] - 1), 1.0)


def right_weights(form: Form, A: Tensor, magnitude: Tensor | None) -> Tensor | None:
    """Factors of the products of A, shape (number of monomials,), float32 or better; None if all are 1."""
    if magnitude is None:
        return None
    return magnitude ** -_degrees_above_one(form, A, magnitude.dtype)


def left_constants(form: Form, A: Tensor, magnitude: Tensor | None = None) -> Tensor | None:
    """Factors of the products of B beside h, shape (number of monomials,), float32 or better; None if all are 1.

    Args:
        form: Order, terms, scaling and factors.
        A: For its rank, dtype and device.
        magnitude: What `right_weights` divides by comes back here.
    """
    if form.order == 1 or (magnitude is None and form.plain()):
        return None
    scaled = tuple(form.scaling * factor for factor in form.factors)
    # In float16 they may be infinite, and no coefficient brings that back.
    dtype = torch.promote_types(A.dtype, torch.float32)
    constants = _per_degree(A.shape[0], form.order, form.terms, scaled, dtype, A.device)
    return constants if magnitude is None else constants * magnitude ** _degrees_above_one(form, A, magnitude.dtype)


def left_weights(h: Tensor | None, constants: Tensor | None) -> Tensor | None:
    """What the products of B are multiplied with, shape (number of monomials,). Differentiable in h."""
    return h if h is None or constants is None else h * constants


def weighted(rows: Tensor, products: Tensor, plain: float = 1.0, weights: Tensor | None = None) -> Tensor:
    """The K expanded rows: components times a number, products times one number each. Differentiable.

    Args:
        rows: Components, shape (rank, columns).
        products: Shape (number of monomials, columns).
        plain: For the components.
        weights: For the products, shape (number of monomials,); None: all 1.
    """
    rows = rows if plain == 1.0 else rows * plain
    if products.shape[0] == 0:
        return rows
    return torch.cat([rows, products if weights is None else products * weights[:, None]])


def _degrees_above_one(form: Form, A: Tensor, dtype: torch.dtype) -> Tensor:
    above = tuple(float(degree - 1) for degree in range(2, form.order + 1))
    return _per_degree(A.shape[0], form.order, form.terms, above, dtype, A.device)


def _per_degree(
    rank: int, order: int, terms: Terms, numbers: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """One number for all products of a degree."""
    counts = [count_of_degree(rank, degree, terms) for degree in range(2, order + 1)]

    def make() -> tuple[Tensor, ...]:
        parts = zip(counts, numbers, strict=True)
        return (torch.cat([torch.full((count,), number, dtype=dtype, device=device) for count, number in parts]),)

    # A compiler would not see through the cache, and the numbers may be symbols to it.
    if torch.compiler.is_compiling():
        return make()[0]
    return kept_tables(("per degree", rank, order, terms, numbers, dtype, device), make)[0]
