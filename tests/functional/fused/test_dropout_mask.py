from __future__ import annotations

import pytest
import torch

from pera_lightning.functional import pera_linear
from pera_lightning.functional.fused.dropout_mask import draw_seed, keep_mask, met_dropout

CPU = torch.device("cpu")


@pytest.mark.parametrize("dropout", [0.01, 0.05, 0.1, 0.5, 0.9])
def test_rate(dropout: float) -> None:
    kept = keep_mask(7, (1000, 1000), CPU, torch.float32, dropout)
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    # Five standard errors of a million draws.
    assert abs(1 - kept.mean().item() - dropout) < 5 * (dropout * (1 - dropout) / 1e6) ** 0.5 + 1 / 65536


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 1023), (0, 4)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_seed_decides(shape: tuple[int, int], dtype: torch.dtype) -> None:
    mask = keep_mask(11, shape, CPU, dtype, 0.3)
    assert mask.shape == shape
    assert mask.dtype == dtype
    assert torch.equal(mask, keep_mask(11, shape, CPU, dtype, 0.3))


def test_other_seeds_and_neighbours_are_independent() -> None:
    one, other = (keep_mask(seed, (1000, 1000), CPU, torch.float64, 0.5) - 0.5 for seed in (1, 2))
    # A correlation of a million pairs has standard error 1e-3.
    for first, second in ((one, other), (one[:, 1:], one[:, :-1]), (one[1:], one[:-1]), (one[:, 4:], one[:, :-4])):
        assert abs((first * second).mean().item() * 4) < 5e-3


def test_the_runs_seed_decides_and_moves_on() -> None:
    torch.manual_seed(3)
    seeds = [draw_seed() for _ in range(5)]
    torch.manual_seed(3)
    assert seeds == [draw_seed() for _ in range(5)]
    assert len(set(seeds)) == 5


@pytest.mark.parametrize("dropout", [1e-7, 0.25, 0.999, 0.9999999])
def test_extreme_rates_are_met_to_a_65536th_and_scaled_by_what_is_met(dropout: float) -> None:
    met = met_dropout(dropout)
    assert 0 <= met < 1
    assert abs(met - dropout) <= 1 / 65536
    x = torch.ones(4_000_000, 1, dtype=torch.float64)
    A, B = torch.ones(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    y = pera_linear(x, A, B, order=1, dropout=dropout, training=True)
    assert set(y.unique().tolist()) <= {0.0, 1 / (1 - met)}
    # Five standard errors.
    assert abs(y.mean().item() - 1) <= 5 * (met / (1 - met) / 4e6) ** 0.5


def test_the_seed_is_drawn_on_the_cpu_whatever_the_default_device() -> None:
    torch.manual_seed(3)
    seed = draw_seed()
    torch.manual_seed(3)
    with torch.device("meta"):
        assert draw_seed() == seed


def test_the_expected_output_is_that_without_dropout() -> None:
    A, B = torch.randn(2, 30, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64).requires_grad_()
    x = torch.randn(1, 30, dtype=torch.float64)
    y = pera_linear(x.expand(100_000, 30), A, B, order=1, dropout=0.2, training=True)
    exact = pera_linear(x, A, B, order=1)
    torch.testing.assert_close(y.mean(0, keepdim=True), exact, rtol=0, atol=5 * y.std().item() / 300)
