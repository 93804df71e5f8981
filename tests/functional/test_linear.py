from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pera_lightning.errors import ConfigError
from pera_lightning.functional import delta_weight, expanded_rank, pera_linear
from tests.support.reference import reference_delta_weight

PATHS = ["factored", "dense", "implicit"]
# Relative to the largest entry of the exact result.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def factors(
    rank: int, n: int, m: int, order: int, terms: str, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    count = expanded_rank(rank, order, terms) - rank
    return torch.randn(rank, n, dtype=dtype), torch.randn(m, rank, dtype=dtype), torch.randn(count, dtype=dtype)


def assert_near(actual: Tensor, exact: Tensor, tolerance: float) -> None:
    assert actual.shape == exact.shape
    error = (actual.double() - exact).abs().max() / exact.abs().max()
    assert error <= tolerance, f"relative error {error:.1e}"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(17, 1023, 65), (1, 1, 1), (5, 3, 129)])
@pytest.mark.parametrize(("order", "terms"), [(1, "full"), (2, "full"), (2, "square"), (3, "cross")])
def test_every_dtype(path: str, dtype: torch.dtype, shape: tuple[int, int, int], order: int, terms: str) -> None:
    tokens, n, m = shape
    A, B, h = (value.to(dtype) / 3 for value in factors(3, n, m, order, terms))
    x = torch.randn(tokens, n).to(dtype)
    exact = x.double() @ reference_delta_weight(A, B, h, order, terms, 0.5).T
    actual = pera_linear(x, A, B, h, order=order, terms=terms, scaling=0.5, path=path)
    assert actual.dtype == dtype
    assert_near(actual, exact, TOLERANCE[dtype])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("leading", [(), (0,), (4,), (2, 3), (2, 0, 5), (1, 2, 3, 4)])
def test_any_leading_shape(path: str, leading: tuple[int, ...]) -> None:
    A, B, h = factors(3, 6, 5, 2, "full")
    x = torch.randn(*leading, 6, dtype=torch.float64, requires_grad=True)
    y = pera_linear(x, A, B, h, path=path)
    assert y.shape == (*leading, 5)
    torch.testing.assert_close(y, x @ delta_weight(A, B, h).T)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape


def test_input_need_not_be_contiguous() -> None:
    A, B, h = factors(2, 6, 5, 2, "full")
    x = torch.randn(6, 7, dtype=torch.float64).T
    torch.testing.assert_close(pera_linear(x, A, B, h), x @ delta_weight(A, B, h).T)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("order", "terms"), [(1, "full"), (2, "full"), (2, "square"), (2, "cross"), (3, "full")])
def test_gradcheck(path: str, order: int, terms: str) -> None:
    A, B, h = factors(3, 4, 5, order, terms)
    inputs = [value.requires_grad_() for value in (torch.randn(2, 4, dtype=torch.float64), A, B, h)]

    def function(x: Tensor, A: Tensor, B: Tensor, h: Tensor) -> Tensor:
        return pera_linear(x, A, B, h, order=order, terms=terms, scaling=1.5, path=path)

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("path", PATHS)
def test_small_float32_factors_survive_half_precision_inputs(path: str) -> None:
    A, B, h = factors(2, 8, 4, 2, "square", torch.float32)
    B, h = B * 1e-4, h * 1e4
    x = torch.randn(3, 8).half()
    exact = x.double() @ reference_delta_weight(A, B, h, 2, "square", 1.0).T
    # b * b is 1e-8, which float16 would round to zero.
    assert_near(pera_linear(x, A, B, h, terms="square", path=path), exact, 5e-3)


def test_autocast() -> None:
    A, B, h = factors(3, 33, 17, 2, "full", torch.float32)
    x = torch.randn(5, 33)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = pera_linear(x, A, B, h)
    assert y.dtype == torch.bfloat16
    assert_near(y, x.double() @ reference_delta_weight(A, B, h, 2, "full", 1.0).T, TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.randn(2, 5)}, r"\(\.\.\., 4\)"),
        ({"x": torch.tensor(1.0)}, "does not fit"),
        ({"B": torch.randn(5, 2)}, "same rank"),
        ({"h": torch.randn(5)}, r"shape \(6,\)"),
        ({"h": None}, "got:      h of shape None"),
        ({"order": 0}, "order"),
        ({"terms": "cubes"}, "terms"),
        ({"dropout": 1.0}, "dropout"),
        ({"path": "magic"}, "factored"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], words: str) -> None:
    arguments = {"x": torch.randn(2, 4), "A": torch.randn(3, 4), "B": torch.randn(5, 3), "h": torch.randn(6)}
    with pytest.raises(ConfigError, match=words):
        pera_linear(**{**arguments, **change})


def test_compiles_without_a_graph_break() -> None:
    A, B, h = (value.requires_grad_() for value in factors(3, 6, 5, 3, "full"))
    x = torch.randn(4, 6, dtype=torch.float64)
    compiled = torch.compile(pera_linear, backend="aot_eager", fullgraph=True)
    expected = torch.autograd.grad(pera_linear(x, A, B, h, order=3).sum(), [A, B, h])
    actual = torch.autograd.grad(compiled(x, A, B, h, order=3).sum(), [A, B, h])
    torch.testing.assert_close(actual, expected)
