"""Dropout by kernel: the mask that its documentation says, the same in both directions."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from pera_lightning.functional import pera_linear
from pera_lightning.functional.kernels.adapter import drop
from tests.functional.kernels.philox import reference_mask

SEEDS = [0, 1, 12345678901234567, (1 << 62) - 1]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 1023), (0, 4), (9, 2048)])
@pytest.mark.parametrize("lost", [1, 3277, 16384, 65535])
def test_mask(seed: int, shape: tuple[int, int], lost: int) -> None:
    """Against Philox written down from its paper."""
    found = drop(torch.ones(shape), torch.tensor([seed]), lost, torch.float64)
    assert torch.equal(found, reference_mask(seed, shape, lost))


HALVES = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize(
    ("given", "written"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32)]
    + [pair for half in HALVES for pair in ((half, half), (torch.float32, half), (half, torch.float32))],
)
def test_dtypes(given: torch.dtype, written: torch.dtype) -> None:
    x, seed = torch.randn(7, 331).to(given), torch.tensor([7])
    mask = reference_mask(7, (7, 331), 20000)
    found, expected = drop(x, seed, 20000, written), torch.where(mask > 0, x, 0).to(written)
    if written == torch.bfloat16 != given:
        # Triton's interpreter cuts off, where a GPU rounds.
        torch.testing.assert_close(found, expected, rtol=2.0**-7, atol=0)
    else:
        assert torch.equal(found, expected)


def test_in_place_and_of_a_view() -> None:
    x, seed = torch.randn(8, 64), torch.tensor([3])
    expected = drop(x, seed, 30000, torch.float32)
    view = torch.randn(8, 100)[:, :64].copy_(x)
    assert torch.equal(drop(view, seed, 30000, torch.float32), expected)
    assert drop(x, seed, 30000, torch.float32, out=x) is x
    assert torch.equal(x, expected)


def test_entries_that_are_lost_do_not_spread() -> None:
    """As with torch's dropout of 0/1 by selection: an infinite entry that is lost is zero, not nan."""
    x = torch.full((4, 256), float("inf"))
    found = drop(x, torch.tensor([3]), 30000, torch.float32)
    assert set(found.unique().tolist()) == {0.0, float("inf")}


def test_rate_and_independence() -> None:
    seeds = [torch.tensor([1]), torch.tensor([2])]
    one, other = (drop(torch.ones(1000, 1000), seed, 32768, torch.float64) - 0.5 for seed in seeds)
    # Five standard errors of a million draws.
    assert abs(one.mean().item()) < 2.5e-3
    for first, second in ((one, other), (one[:, 1:], one[:, :-1]), (one[1:], one[:-1]), (one[:, 8:], one[:, :-8])):
        assert abs((first * second).mean().item() * 4) < 5e-3


@pytest.mark.usefixtures("kernels_on_cpu")
@pytest.mark.parametrize("path", ["factored", "dense"])
def test_both_directions(path: str) -> None:
    """The gradient is the slope of the output under one and the same mask."""
    torch.manual_seed(0)
    A, B, h = torch.randn(2, 5).double(), torch.randn(3, 2).double(), torch.randn(3).double()
    x = torch.randn(2, 5, dtype=torch.float64)
    values = [value.requires_grad_() for value in (x, A, B, h)]

    def function(*values: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)
        return pera_linear(*values, path=path, dropout=0.4, training=True)

    assert torch.autograd.gradcheck(function, values)
    assert torch.autograd.gradgradcheck(function, values)
    assert not torch.equal(function(*values), pera_linear(*values, path=path))


@pytest.mark.usefixtures("kernels_on_cpu")
@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_repeats_the_mask(reentrant: bool) -> None:
    A, B, h = (torch.randn(shape).double().requires_grad_() for shape in ((3, 40), (20, 3), (6,)))
    x = torch.randn(8, 40, dtype=torch.float64, requires_grad=True)
    outputs = []

    def function(x: torch.Tensor) -> torch.Tensor:
        y = pera_linear(x, A, B, h, dropout=0.5, training=True)
        outputs.append(y.detach())
        return y.tanh()

    torch.manual_seed(5)
    expected = torch.autograd.grad(function(x).sum(), (x, A, B, h))
    torch.manual_seed(5)
    checkpoint(function, x, use_reentrant=reentrant).sum().backward()
    assert len(outputs) == 3
    for output in outputs[1:]:
        assert torch.equal(output, outputs[0])
    for value, gradient in zip((x, A, B, h), expected, strict=True):
        assert torch.equal(value.grad, gradient)
