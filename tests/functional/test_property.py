"""Random shapes, ranks, orders, terms, dtypes and paths against the slow reference."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from pera_lightning.functional import PATHS, expanded_rank, pera_linear
from tests.support.reference import reference_delta_weight

# Per entry, relative to the same sum of absolute values: cancellation is not the computation's fault. Half precision
# rounds x, products of the factors, the middle and the output.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@pytest.mark.parametrize("draw", range(120))
def test_output_and_gradients(draw: int) -> None:
    chance = random.Random(draw)
    rank, order = chance.randint(1, 6), chance.randint(1, 3)
    terms = chance.choice(["full", "square", "cross"])
    n, m = chance.choice([1, 3, 31, 64, 1023]), chance.choice([1, 2, 17, 64, 129])
    leading = chance.choice([(), (1,), (5,), (2, 3), (0, 4), (200,)])
    dtype, path = chance.choice(list(TOLERANCE)), chance.choice(PATHS)
    factor_dtype = chance.choice([dtype, torch.promote_types(dtype, torch.float32)])
    scaling = chance.choice([1.0, 0.25, -3.0])
    torch.manual_seed(draw)
    x = (torch.randn(*leading, n) / n**0.5).to(dtype).requires_grad_()
    A, B = torch.randn(rank, n).to(factor_dtype), torch.randn(m, rank).to(factor_dtype)
    count = expanded_rank(rank, order, terms) - rank
    h = torch.randn(count).to(factor_dtype) if count or chance.random() < 0.5 else None
    values = [value.requires_grad_() for value in (A, B, h) if value is not None]
    y = pera_linear(x, A, B, h, order=order, terms=terms, scaling=scaling, path=path)
    assert y.dtype == dtype
    assert y.shape == (*leading, m)
    grad = torch.randn_like(y)
    wanted = [*([x] if x.numel() else []), *(value for value in values if value.numel())]
    found = [y, *torch.autograd.grad(y, wanted, grad)]

    def reference(
        x: Tensor, A: Tensor, B: Tensor, h: Tensor | None = None, *, scaling: float, grad: Tensor
    ) -> list[Tensor]:
        inputs = [value.detach().double().requires_grad_() for value in (x, A, B, h) if value is not None]
        weight = reference_delta_weight(*inputs[1:3], inputs[3] if h is not None else None, order, terms, scaling)
        exact = inputs[0] @ weight.T
        return [exact, *torch.autograd.grad(exact, [value for value in inputs if value.numel()], grad.double())]

    exact = reference(x, *values, scaling=scaling, grad=grad)
    size = reference(x.abs(), *(value.abs() for value in values), scaling=abs(scaling), grad=grad.abs())
    for actual, right, bound in zip(found, exact, size, strict=True):
        assert actual.shape == right.shape
        assert ((actual.double() - right).abs() <= TOLERANCE[dtype] * bound + 1e-30).all()
