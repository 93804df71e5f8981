"""Expansion and its gradient: the kernels against plain operations, on random shapes, in every dtype."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from pera_lightning.families import FAMILIES
from pera_lightning.functional import expand, expanded_rank
from pera_lightning.functional.expansion.monomials import monomials
from pera_lightning.functional.form import Form
from pera_lightning.functional.kernels.adapter import AdapterKernels
from tests.support.more_families import MORE_FAMILIES

CPU = torch.device("cpu")
# One rounding to the dtype that is written, relative to the entry. Triton's interpreter cuts bfloat16 off, where a GPU
# rounds it: twice the error.
ROUNDING = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-11}
# Of a sum in float32 or float64, relative to the same sum of absolute values.
SUM = {torch.float64: 1e-13, torch.float32: 1e-6}
SMALLEST = {torch.float16: 6e-8}


class Case(NamedTuple):
    form: Form
    A: Tensor
    B: Tensor
    h: Tensor | None
    dtype: torch.dtype

    def kernels(self) -> AdapterKernels:
        rank, n = self.A.shape
        return AdapterKernels(self.form, rank, n, self.B.shape[0], self.dtype, self.A.dtype, CPU)

    @property
    def largest(self) -> Tensor:
        return self.A.detach().abs().amax().float()


def cases(draw: int, families: Sequence[Any] = ("full", "square", "cross")) -> Iterator[Case]:
    """Eight shapes."""
    chance = random.Random(draw)
    torch.manual_seed(draw)
    for _ in range(8):
        order = chance.choice([1, 2, 2, 3])
        rank = chance.choice([1, 2, 3, 4, 7, 8, 16] if order < 3 else [1, 2, 3, 5])
        terms = chance.choice(families)
        n, m = chance.choice([1, 3, 31, 128, 129, 200]), chance.choice([1, 2, 17, 64, 129, 260])
        dtype = chance.choice(list(ROUNDING))
        factor_dtype = chance.choice([dtype, torch.promote_types(dtype, torch.float32)])
        A, B = (torch.randn(rank, n) / n**0.5).to(factor_dtype), torch.randn(m, rank).to(factor_dtype)
        count = expanded_rank(rank, order, terms) - rank
        h = torch.randn(count).to(factor_dtype) if count else None
        form = Form(order, terms, chance.choice([1.0, 0.25, -3.0]), tuple([2.0, 5.0][: order - 1]))
        yield Case(form, A, B, h, dtype)


def exact_factors(case: Case) -> tuple[Tensor, Tensor]:
    """Both expanded factors in float64, shapes (K, in) and (out, K), differentiable."""
    order, terms, scaling, factors = case.form
    rank = case.A.shape[0]
    degrees = [1] * rank + [len(product) for product in monomials(rank, order, terms)]
    constants = torch.tensor([1.0, *factors], dtype=torch.float64)[torch.tensor(degrees) - 1]
    plain = torch.ones(rank, dtype=torch.float64)
    weights = plain if case.h is None else torch.cat([plain, case.h.double()])
    # float16 has powers of two moved from one factor to the other; see `float16_magnitude`.
    power = 1.0
    if case.dtype == torch.float16 and order > 1:
        power = 2.0 ** torch.floor(torch.log2(case.largest)).item()
    moved = power ** (torch.tensor(degrees, dtype=torch.float64) - 1)
    right = expand(case.A.double(), 0, order, terms) / moved[:, None]
    left = expand(case.B.double(), 1, order, terms) * (weights * constants * scaling * moved)
    return right, left


@pytest.mark.parametrize("draw", range(40))
def test_expand(draw: int) -> None:
    check_expand(cases(draw))


def check_expand(drawn: Iterator[Case]) -> None:
    for case in drawn:
        found = case.kernels().expand(case.A, case.B, case.h, case.largest)
        right, left = exact_factors(case)
        columns = right.shape[0]
        assert found[0].shape[0] % 16 == 0
        assert found[0].shape[0] == found[1].shape[1] >= columns
        assert not found[0][columns:].any()
        assert not found[1][:, columns:].any()
        for actual, exact in zip((found[0][:columns], found[1][:, :columns]), (right, left), strict=True):
            assert actual.dtype == case.dtype
            error = (actual.double() - exact).abs()
            assert (error <= ROUNDING[case.dtype] * exact.abs() + SMALLEST.get(case.dtype, 0.0)).all(), case.form


@pytest.mark.parametrize("draw", range(40))
def test_fold(draw: int) -> None:
    check_fold(cases(draw + 1000))


@pytest.mark.parametrize("draw", range(4))
def test_families_of_other_kinds(draw: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, family in MORE_FAMILIES.items():
        monkeypatch.setitem(FAMILIES, name, family)
    check_expand(cases(draw, list(MORE_FAMILIES)))
    check_fold(cases(draw + 1000, list(MORE_FAMILIES)))


def check_fold(drawn: Iterator[Case]) -> None:
    for case in drawn:
        kernels = case.kernels()
        width = kernels.expand(case.A, case.B, case.h, case.largest)[0].shape[0]
        right_grad = torch.randn(width, case.A.shape[1]).to(case.dtype)
        left_grad = torch.randn(case.B.shape[0], width).to(case.dtype)
        A_grad, B_grad, sums = kernels.fold(right_grad, left_grad, case.A, case.B, case.h, case.largest, True)
        found = [A_grad, B_grad] + ([] if case.h is None else [sums.sum(0)])
        for actual, exact, bound in zip(
            found, gradients(case, right_grad, left_grad), gradients(absolute(case), right_grad.abs(), left_grad.abs()),
            strict=True,
        ):  # fmt: skip
            kept = actual.dtype
            tolerance = ROUNDING[kept] if kept not in SUM else SUM[kept]
            assert actual.shape == exact.shape
            error = (actual.double() - exact).abs()
            assert (error <= 2 * tolerance * bound.abs() + SMALLEST.get(kept, 0.0)).all(), (case.form, kept)


def absolute(case: Case) -> Case:
    """All of it positive: what errors are relative to."""
    form = case.form._replace(scaling=abs(case.form.scaling))
    return Case(form, case.A.abs(), case.B.abs(), None if case.h is None else case.h.abs(), case.dtype)


def gradients(case: Case, right_grad: Tensor, left_grad: Tensor) -> list[Tensor]:
    """By autograd in float64."""
    values = [value.double().requires_grad_() for value in (case.A, case.B, case.h) if value is not None]
    h = values[2] if case.h is not None else None
    right, left = exact_factors(Case(case.form, values[0], values[1], h, case.dtype))
    columns = right.shape[0]
    total = (right * right_grad[:columns].double()).sum() + (left * left_grad[:, :columns].double()).sum()
    return list(torch.autograd.grad(total, values))
