"""The adapter made ready for inference: what it multiplies x with, in one of three forms."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pera_lightning.families import Terms
from pera_lightning.form_bounds import count_of_degree
from pera_lightning.functional.expansion.columns import (
    float16_magnitude,
    left_constants,
    left_weights,
    right_weights,
    weighted,
)
from pera_lightning.functional.expansion.expansion import expand
from pera_lightning.functional.expansion.monomials import degree_indices
from pera_lightning.functional.form import Form
from pera_lightning.functional.precision import in_dtype


class Factored(NamedTuple):
    """Two thin products through the K expanded columns: `y = (x right^T) left`."""

    right: Tensor
    """Shape (K, in)."""
    left: Tensor
    """Shape (K, out), coefficients and scaling included."""

    def add_to(self, output: Tensor | None, x: Tensor) -> Tensor:
        """`output` (tokens, out) plus the adapter's part for x (tokens, in); the part alone if there is no output."""
        middle = x @ self.right.t()
        return middle @ self.left if output is None else torch.addmm(output, middle, self.left)


class Dense(NamedTuple):
    """One product with dW."""

    weight: Tensor
    """Shape (out, in), scaling included."""

    def add_to(self, output: Tensor | None, x: Tensor) -> Tensor:
        """See `Factored.add_to`."""
        return x @ self.weight.t() if output is None else torch.addmm(output, x, self.weight.t())


class Implicit(NamedTuple):
    """No expansion at all: the adapter as a polynomial in A and B, evaluated token by token.

    A constant 1 joins the rank components as one more, so that lower degrees are special cases of the highest. For
    order 2 and with coefficients C: `y_p = sum_ij C_ij (sum_k x_k a_ik a_jk) b_pi b_pj`, where only j may be it.
    """

    A: Tensor
    """Shape (rank, in)."""
    Bt: Tensor
    """Shape (rank, out)."""
    inputs: Tensor
    """A transposed, with the constant: shape (in, rank + 1)."""
    outputs: Tensor
    """Bt with the constant: shape (rank + 1, out)."""
    coefficients: Tensor
    """Shape (rank, rank + 1, ..., rank + 1), one axis per degree, scaling included; zero where no monomial is."""

    def add_to(self, output: Tensor | None, x: Tensor) -> Tensor:
        """See `Factored.add_to`."""
        nested, dtype = self.coefficients.dim() - 1, x.dtype
        x = x.to(self.A.dtype)
        if nested > 0:
            x = x.unsqueeze(-2) * self.A
        for _ in range(nested - 1):
            x = x.unsqueeze(-2) * self.inputs.t()
        if nested > 0:
            total = ((x @ self.inputs) * self.coefficients) @ self.outputs
        else:
            total = ((x @ self.A.t()) * self.coefficients) @ self.Bt
        for _ in range(nested - 1):
            total = (total * self.outputs).sum(-2)
        if nested > 0:
            total = (total * self.Bt).sum(-2)
        total = total.to(dtype)
        return total if output is None else output + total


Operands = Factored | Dense | Implicit


def prepare(path: str, A: Tensor, B: Tensor, h: Tensor | None, form: Form, dtype: torch.dtype) -> Operands:
    """The operands of one path. Differentiable.

    Products of the factors, coefficients and scaling are taken in the factors' own dtype and only then rounded to
    `dtype`, because a product of two small entries loses more in half precision than each of them.

    Args:
        path: "factored", "dense" or "implicit".
        A: Shape (rank, in).
        B: Shape (out, rank).
        h: Coefficients without their constant factors; None where there are none.
        form: Order, terms, scaling and factors.
        dtype: Of the operands.
    """
    rank, order, terms = A.shape[0], form.order, form.terms
    if order == 1 and path == "factored":
        # The factors themselves, and no copies where none are needed.
        return Factored(in_dtype(A, dtype), in_dtype(B.t() if form.scaling == 1.0 else B.t() * form.scaling, dtype))
    if path == "implicit":
        # Its coefficients may lie beyond float16, and for few tokens a wider dtype costs next to nothing.
        dtype = torch.float32 if dtype == torch.float16 else dtype
        plain, weights = A.new_full((rank,), form.scaling), left_weights(h, left_constants(form, A))
        every = plain if weights is None else torch.cat([plain, weights])
        coefficients = _coefficient_array(every, rank, order, terms)
        A, Bt = A.to(dtype), B.t().contiguous().to(dtype)
        inputs, outputs = F.pad(A.t(), (0, 1), value=1.0), F.pad(Bt, (0, 0, 0, 1), value=1.0)
        return Implicit(A, Bt, inputs, outputs, coefficients.to(dtype))
    magnitude = float16_magnitude(A, form, dtype)
    right = _weighted(expand(A, 0, order, terms), rank, 1.0, right_weights(form, A, magnitude))
    weights = left_weights(h, left_constants(form, A, magnitude))
    left = _weighted(expand(B.t().contiguous(), 0, order, terms), rank, form.scaling, weights)
    if path == "dense":
        wide = torch.promote_types(left.dtype, right.dtype)
        return Dense((left.to(wide).t() @ right.to(wide)).to(dtype))
    return Factored(right.to(dtype), left.to(dtype))


def _weighted(expanded: Tensor, rank: int, plain: float, weights: Tensor | None) -> Tensor:
    return expanded if plain == 1.0 and weights is None else weighted(expanded[:rank], expanded[rank:], plain, weights)


def _coefficient_array(columns: Tensor, rank: int, order: int, terms: Terms) -> Tensor:
    """Per tuple of components; monomials of lower degree are filled up with the constant, component `rank`."""
    size = rank + 1
    places = []
    for degree in range(1, order + 1):
        if degree > 1 and count_of_degree(rank, degree, terms) == 0:
            continue
        members = degree_indices(rank, degree, "full" if degree == 1 else terms, columns.device)
        place = members[0]
        for position in range(1, order):
            place = place * size + (members[position] if position < degree else rank)
        places.append(place)
    array = columns.new_zeros(rank * size ** (order - 1))
    return array.index_copy(0, torch.cat(places), columns).view(rank, *[size] * (order - 1))
