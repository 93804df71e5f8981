"""The products of rank components and their gradient, without autograd and in few operations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pera_lightning.families import FAMILIES, Terms
from pera_lightning.form_bounds import column_count
from pera_lightning.functional.expansion.columns import weighted
from pera_lightning.functional.expansion.monomials import Products, product_tables
from pera_lightning.functional.precision import in_dtype

# From this many expanded entries on, a CPU is faster component by component: everything is written once and nothing
# is gathered. Below it, and on GPUs, the number of operations counts.
LARGE = 1 << 18


class Expansion:
    """The K rows that rank components are expanded to, each times a number, and the way back; without a graph.

    Args:
        rows: The rank components, shape (rank, columns): A, or B transposed.
        order: Highest degree.
        terms: Which monomials take part.
        plain: What the components themselves are multiplied with.
        weights: What their products are multiplied with, shape (number of monomials,); None: all 1.

    Attributes:
        products: Shape (number of monomials, columns), degree 2 first, not yet multiplied with the weights; none at
            order 1.
    """

    products: Tensor
    # Both parts in one piece, where they were written like that.
    _whole: Tensor | None = None
    _tables: tuple[Products, ...] = ()
    # Of each degree the members of its products (degree, size, columns): the way back needs them too.
    _members: Sequence[Tensor] = ()

    def __init__(
        self, rows: Tensor, order: int, terms: Terms, plain: float = 1.0, weights: Tensor | None = None
    ) -> None:
        self.rows, self._order, self._terms = rows, order, terms
        self._family = FAMILIES[terms]
        self._plain, self._weights = plain, weights
        if order == 1:
            return
        if self._family.every_power_alone:
            self.products = rows * rows if order == 2 else torch.cat([rows**d for d in range(2, order + 1)])
        elif self._is_large():
            self._write_pairs()
        else:
            self._gather()

    def _is_large(self) -> bool:
        rows = self.rows
        if self._order != 2 or not rows.is_cpu or self._family.first_partner is None:
            return False
        return self._family.count(rows.shape[0], 2) * rows.shape[1] >= LARGE

    def _gather(self) -> None:
        # Gathered from a transposed view, rows take three times as long.
        rows = self.rows = self.rows.contiguous()
        self._tables = product_tables(rows.shape[0], self._order, self._terms, rows.device, rows.dtype)
        every, self._members = [], []
        for degree, size, indices, _ in self._tables:
            members = rows.index_select(0, indices).view(degree, size, -1)
            self._members.append(members)
            first, second, *others = members.unbind()
            product = first * second
            for member in others:
                product = product * member
            every.append(product)
        self.products = every[0] if len(every) == 1 else torch.cat(every) if every else rows[:0]

    def _write_pairs(self) -> None:
        self.rows = self.rows.contiguous()
        rank, columns = self.rows.shape
        self._whole = self.rows.new_empty(column_count(rank, 2, self._terms), columns)
        self._whole[:rank] = self.rows
        self.products = self._whole[rank:]
        for component, partners, pairs in self._pairs(self.products):
            torch.mul(partners, component, out=pairs)

    def expanded(self) -> Tensor:
        """Shape (K, columns), the dtype of the rows or of the weights, whichever is wider."""
        if self._order == 1:
            return self.rows if self._plain == 1.0 else self.rows * self._plain
        if self._whole is not None and self._plain == 1.0 and self._weights is None:
            return self._whole
        return weighted(self.rows, self.products, self._plain, self._weights)

    def fold(self, grad: Tensor, transposed: bool = False) -> Tensor:
        """The gradient of the components, given that of `expanded()`: the transposed Jacobian.

        Each product hands its gradient to every one of its members, times the other members. Unlike with scattered
        additions, a GPU gives the same bits every time.

        Args:
            grad: Shape (K, columns); it is not changed.
            transposed: Whether to return (columns, rank): the gradient of B, which lies like that.

        Returns:
            Shape (rank, columns), the dtype of the rows.
        """
        rank, dtype = self.rows.shape[0], self.rows.dtype
        folded = grad if self._order == 1 else grad[:rank]
        folded = in_dtype(folded if self._plain == 1.0 else folded * self._plain, dtype)
        if self._order == 1:
            return folded.t() if transposed else folded
        products_grad = grad[rank:]
        if self._weights is not None:
            products_grad = products_grad * self._weights[:, None]
        # Weights of half-precision factors are float32, and so is all that comes of them until the sum.
        folded = in_dtype(folded, products_grad.dtype)
        if self._whole is not None:
            folded = self._fold_pairs(folded.clone(), products_grad)
        if transposed:
            folded = folded.t()
        fold = self._fold_powers if self._family.every_power_alone else self._fold_products
        return in_dtype(fold(folded, products_grad, transposed), dtype)

    def _fold_products(self, folded: Tensor, products_grad: Tensor, transposed: bool) -> Tensor:
        start = 0
        for (degree, size, _, left_out), members in zip(self._tables, self._members, strict=True):
            grad = products_grad if len(self._tables) == 1 else products_grad[start : start + size]
            # At degree 2 each member is the other one's share.
            shares = grad * members if degree == 2 else torch.cat(_shares(grad, members))
            shares, left_out = shares.view(degree * size, -1), in_dtype(left_out, folded.dtype)
            # The sum over the products of a member, as a product with a 0/1 matrix.
            if transposed:
                folded = torch.addmm(folded, shares.t(), left_out.t())
            else:
                folded = torch.addmm(folded, left_out, shares)
            start += size
        return folded

    def _fold_powers(self, folded: Tensor, products_grad: Tensor, transposed: bool) -> Tensor:
        rank = self.rows.shape[0]
        for degree in range(2, self._order + 1):
            grad = products_grad[(degree - 2) * rank : (degree - 1) * rank]
            powers = self.rows if degree == 2 else self.rows ** (degree - 1)
            grad, powers = (grad.t(), powers.t()) if transposed else (grad, powers)
            folded = torch.addcmul(folded, grad, powers, value=degree)
        return folded

    def _pairs(self, block: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Per component: itself (columns,), its partners (count, columns) and their part of `block`, of that shape."""
        first = self._family.first_partner or 0
        counts = list(range(self.rows.shape[0] - first, 0, -1))
        for component, count, pairs in zip(self.rows.unbind(), counts, block.split(counts), strict=False):
            yield component, self.rows[-count:], pairs

    def _fold_pairs(self, folded: Tensor, grad: Tensor) -> Tensor:
        for target, (component, partners, pairs) in zip(folded.unbind(), self._pairs(grad), strict=False):
            target.add_((pairs * partners).sum(0))
            folded[-partners.shape[0] :].addcmul_(pairs, component)
        return folded


def _shares(grad: Tensor, members: Tensor) -> list[Tensor]:
    """The gradient times all members but one: the last one, the one before it, ..."""
    before = [grad]
    for member in members[:-1]:
        before.append(before[-1] * member)
    shares, after = [before.pop()], None
    for member in reversed(members[1:]):
        after = member if after is None else after * member
        shares.append(before.pop() * after)
    return shares
