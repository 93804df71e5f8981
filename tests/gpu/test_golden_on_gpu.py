"""The golden cases, and every dtype against float64 on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pera_lightning.functional import expanded_rank, pera_linear
from pera_lightning.functional.linear import PATHS
from tests.functional.test_golden import CASES, case_id, options, tensor

# Relative errors of a product that is rounded to the dtype, with some room.
ERRORS = {torch.float32: 5e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
SHAPES = [(512, 768, 8, 300), (1023, 515, 16, 77), (256, 256, 32, 4096), (64, 48, 4, 1)]
"""In, out, rank, tokens."""
NAMES = ("x", "A", "B", "h")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_output_and_gradients(device: torch.device, case: dict[str, Any], path: Any) -> None:
    inputs = {name: tensor(case, name).to(device).requires_grad_() for name in NAMES}
    bias = tensor(case, "bias").to(device) if case["bias"] else None
    y = nn.functional.linear(inputs["x"], tensor(case, "W0").to(device), bias)
    y = y + pera_linear(**inputs, **options(case), path=path)
    torch.testing.assert_close(y.cpu(), tensor(case, "y"), rtol=0, atol=1e-12)
    y.backward(tensor(case, "grad_output").to(device))
    for name, value in inputs.items():
        if value.numel():
            torch.testing.assert_close(value.grad.cpu(), tensor(case, f"grad_{name}"), rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ERRORS, ids=str)
def test_every_dtype(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...], order: int) -> None:
    n, m, rank, tokens = shape
    rank = min(rank, 8) if order == 3 else rank
    x, A, B = torch.randn(tokens, n), torch.randn(rank, n) * n**-0.5, torch.randn(m, rank) * 0.2
    h = torch.randn(expanded_rank(rank, order) - rank)
    grad = torch.randn(tokens, m)
    exact = results([value.double() for value in (x, A, B, h)], grad.double(), order)
    found = results([x.to(device, dtype), *(value.to(device) for value in (A, B, h))], grad.to(device, dtype), order)
    for name, one, other in zip(("y", *NAMES), found, exact, strict=True):
        if other.numel():
            error = (one.double().cpu() - other).norm() / other.norm()
            assert error < ERRORS[dtype], name


def results(values: list[Tensor], grad: Tensor, order: int) -> list[Tensor]:
    """Output and gradients."""
    leaves = [value.detach().requires_grad_() for value in values]
    y = pera_linear(*leaves, order=order)
    y.backward(grad)
    return [y.detach(), *(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves)]
