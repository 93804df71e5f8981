from __future__ import annotations

import pytest
import torch

from pera_lightning.functional import expand, expanded_rank
from pera_lightning.functional.expansion import fold as fold_module
from pera_lightning.functional.expansion.fold import Expansion

FORMS = [(order, terms) for order in (1, 2, 3, 4) for terms in ("full", "square", "cross")]


@pytest.mark.parametrize("large", [0, 1 << 40], ids=["component by component", "gathered"])
@pytest.mark.parametrize(("order", "terms"), FORMS)
@pytest.mark.parametrize("rank", [1, 2, 5])
def test_fold_is_the_gradient_of_the_expansion(
    monkeypatch: pytest.MonkeyPatch, large: int, order: int, terms: str, rank: int
) -> None:
    monkeypatch.setattr(fold_module, "LARGE", large)
    rows = torch.randn(rank, 7, dtype=torch.float64, requires_grad=True)
    expanded = expand(rows, 0, order, terms)
    grad = torch.randn_like(expanded)
    (expected,) = torch.autograd.grad(expanded, rows, grad)
    kept = grad.clone()
    expansion = Expansion(rows.detach(), order, terms)
    assert torch.equal(expansion.expanded(), expanded)
    torch.testing.assert_close(expansion.fold(grad), expected, rtol=1e-12, atol=1e-12)
    turned = expansion.fold(grad, transposed=True)
    torch.testing.assert_close(turned.t(), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(grad, kept)


@pytest.mark.parametrize("terms", ["full", "cross"])
def test_both_ways_agree_at_a_size_that_chooses_by_itself(monkeypatch: pytest.MonkeyPatch, terms: str) -> None:
    rank, columns = 24, 1100
    assert expanded_rank(rank, 2, terms) * columns > fold_module.LARGE
    rows, grad = torch.randn(rank, columns), torch.randn(expanded_rank(rank, 2, terms), columns)
    large = Expansion(rows, 2, terms)
    monkeypatch.setattr(fold_module, "LARGE", 1 << 40)
    gathered = Expansion(rows, 2, terms)
    assert torch.equal(large.expanded(), gathered.expanded())
    # Sums of 48 products in another order.
    torch.testing.assert_close(large.fold(grad), gathered.fold(grad), rtol=1e-5, atol=1e-5)
