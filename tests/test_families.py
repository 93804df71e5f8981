"""A family of monomials is one entry: everything computes with it, or refuses it in words."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from pera_lightning import PeraConfig, inject_adapter, load_adapter, merge_adapter, save_adapter
from pera_lightning.analysis import inspect_adapter
from pera_lightning.errors import ConfigError
from pera_lightning.families import FAMILIES, Terms
from pera_lightning.functional import PATHS, delta_weight, expand, expanded_rank, monomials, pera_linear
from pera_lightning.functional.expansion import fold as fold_module
from pera_lightning.functional.expansion.fold import Expansion
from tests.support.more_families import MORE_FAMILIES
from tests.support.reference import reference_delta_weight_of

ORDER = {"cubes": 3, "neighbours": 2, "first_pairs": 3}


@pytest.fixture(autouse=True)
def more_families(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, family in MORE_FAMILIES.items():
        monkeypatch.setitem(FAMILIES, name, family)


def factors(rank: int, name: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    count = expanded_rank(rank, ORDER[name], name) - rank
    return torch.randn(rank, 7, dtype=dtype), torch.randn(5, rank, dtype=dtype), torch.randn(count, dtype=dtype)


def test_every_family_can_be_chosen_and_is_described() -> None:
    own = [name for name in FAMILIES if name not in MORE_FAMILIES]
    assert own == list(get_args(Terms))
    for text in (PeraConfig.__doc__, monomials.__doc__):
        assert [name for name in own if f'"{name}"' not in str(text)] == []


@pytest.mark.parametrize("rank", [2, 3, 5])
@pytest.mark.parametrize("name", MORE_FAMILIES)
def test_weight_change_and_every_path(name: str, rank: int) -> None:
    (A, B, h), order = factors(rank, name), ORDER[name]
    exact = reference_delta_weight_of(monomials(rank, order, name), A, B, h)
    torch.testing.assert_close(delta_weight(A, B, h, order=order, terms=name), exact)
    x = torch.randn(4, 7, dtype=torch.float64)
    inputs = [value.requires_grad_() for value in (x, A, B, h)]
    for path in PATHS:
        y = pera_linear(*inputs, order=order, terms=name, path=path)
        torch.testing.assert_close(y, x @ exact.T)
        assert torch.autograd.gradcheck(
            lambda *values, path=path: pera_linear(*values, order=order, terms=name, path=path), inputs
        )


@pytest.mark.parametrize("large", [0, 1 << 40])
@pytest.mark.parametrize("name", MORE_FAMILIES)
def test_expansion_and_its_gradient(name: str, large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold_module, "LARGE", large)
    for order in range(1, 5):
        rows = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)
        expanded = expand(rows, 0, order, name)
        assert expanded.shape[0] == expanded_rank(4, order, name)
        grad = torch.randn_like(expanded)
        (expected,) = torch.autograd.grad(expanded, rows, grad)
        expansion = Expansion(rows.detach(), order, name)
        assert torch.equal(expansion.expanded(), expanded)
        torch.testing.assert_close(expansion.fold(grad), expected)


@pytest.mark.parametrize("name", MORE_FAMILIES)
def test_a_layer_is_trained_saved_loaded_merged_and_inspected(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 5))
    start = {key: value.clone() for key, value in model.state_dict().items()}
    inject_adapter(model, PeraConfig(3, ORDER[name], terms=name))
    x = torch.randn(4, 7)
    for _ in range(3):
        model(x).square().mean().backward()
        torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=0.5).step()
    trained = model(x)
    save_adapter(model, tmp_path)
    fresh = nn.Sequential(nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 5))
    fresh.load_state_dict(start)
    load_adapter(fresh, tmp_path)
    torch.testing.assert_close(fresh(x), trained)
    assert inspect_adapter(fresh)
    torch.testing.assert_close(merge_adapter(fresh)(x), trained)


def test_an_order_or_a_rank_without_products_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"There are no cubes terms up to order 2[\s\S]*raise the order"):
        PeraConfig(8, 2, terms="cubes")
    with pytest.raises(ConfigError, match=r"There are no neighbours terms at rank 1[\s\S]*rank >= 2"):
        PeraConfig(1, 2, terms="neighbours")
    with pytest.raises(ConfigError, match=r"There are no cross terms at rank 1[\s\S]*rank >= 2"):
        PeraConfig(4, 2, terms="cross", rank_pattern={"q": 1})
    PeraConfig(1, 1, terms="cubes")
