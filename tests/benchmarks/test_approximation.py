"""How near LoRA and PERA come to a weight change, where the answer is known."""

from __future__ import annotations

import pytest
import torch

from benchmarks.quality.approximation import TERMS, Terms, approximate, left_by_lora, worth_in_ranks
from tests.support.reference import reference_delta_weight


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_what_lora_leaves_is_what_its_best_factors_leave() -> None:
    change = drawn(7, 5)
    left, values, right = torch.linalg.svd(change, full_matrices=False)
    for rank, share in enumerate(left_by_lora(change)):
        rest = change - left[:, :rank] * values[:rank] @ right[:rank]
        assert share.item() == pytest.approx((rest.norm() / change.norm()).item() ** 2, abs=1e-12)


@pytest.mark.parametrize("terms", TERMS)
def test_a_change_that_is_pera_of_the_rank_is_reached(terms: Terms) -> None:
    count = 3 if terms == "full" else 2
    change = reference_delta_weight(drawn(2, 10), drawn(12, 2, seed=1), drawn(count, seed=2), 2, terms, 1.0)
    left, energy = approximate(change, 2, terms, starts=8)
    assert left < 1e-9
    assert energy > 0.1
    assert left_by_lora(change)[2] > 0.01


def test_products_do_not_come_less_near_than_lora() -> None:
    change = drawn(9, 8)
    for rank in (1, 2, 3):
        assert approximate(change, rank, "full")[0] <= left_by_lora(change)[rank] + 1e-9


def test_worth_is_between_the_ranks_that_leave_more_and_less() -> None:
    lora = torch.tensor([1.0, 0.6, 0.4, 0.0])
    assert [worth_in_ranks(left, lora) for left in (1.2, 1.0, 0.8, 0.6, 0.5, 0.1, -1e-9)] == pytest.approx(
        [-0.5, 0, 0.5, 1, 1.5, 2.75, 3]
    )
