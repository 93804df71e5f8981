"""Inner products and norms of low-rank products against those of the dense matrices."""

from __future__ import annotations

import pytest
import torch

from pera_lightning.functional.factor_norms import product_inner, product_norm


@pytest.mark.parametrize(("ranks", "rows", "columns"), [((1, 1), 3, 5), ((4, 2), 7, 6), ((9, 3), 4, 2)])
def test_equal_those_of_the_dense_matrices(ranks: tuple[int, int], rows: int, columns: int) -> None:
    torch.manual_seed(0)
    (left, right), (other_left, other_right) = [
        (torch.randn(rows, rank).double(), torch.randn(rank, columns).double()) for rank in ranks
    ]
    dense, other = left @ right, other_left @ other_right
    torch.testing.assert_close(product_inner(left, right, other_left, other_right), (dense * other).sum())
    torch.testing.assert_close(product_norm(left, right), dense.norm())


@pytest.mark.parametrize("seed", range(8))
def test_a_product_that_cancels_has_norm_zero(seed: int) -> None:
    """Rounding makes the square of some of these negative."""
    torch.manual_seed(seed)
    left, right = torch.randn(6, 2), torch.randn(2, 5)
    norm = product_norm(torch.cat([left / 0.7, 0.3 * left, left], dim=1), torch.cat([0.7 * right, right, -1.3 * right]))
    assert 0 <= norm < 1e-2


def test_autocast_does_not_round_them() -> None:
    left, right = torch.full((3, 1), 1.001), torch.full((1, 3), 1.001)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert product_norm(left, right).item() == pytest.approx(3 * 1.001**2, rel=1e-6)
