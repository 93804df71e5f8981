from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import jacobian

from pera_lightning import PeraConfig, inject_adapter
from pera_lightning.analysis import interaction_strength
from pera_lightning.errors import InjectionError
from pera_lightning.functional import delta_weight
from pera_lightning.injection import adapted_layers
from pera_lightning.layers import PeraLinear
from tests.support.models import randomise_adapter, tiny_llama, token_ids


def by_derivatives(layer: PeraLinear, rows: Tensor) -> Tensor:
    """S from derivatives that autograd takes of dW(g) x by gates on the columns of B."""

    def output(gates: Tensor) -> Tensor:
        change = delta_weight(
            layer.pera_A.detach().double(),
            layer.pera_B.detach().double() * gates,
            layer.coefficients.detach().double(),
            order=layer.config.order,
            terms=layer.config.terms,
            scaling=layer.scaling,
        )
        return rows.double() @ change.T

    def first(gates: Tensor) -> Tensor:
        return jacobian(output, gates, create_graph=True)

    ones = torch.ones(layer.rank, dtype=torch.float64)
    second = jacobian(first, ones)
    return second.norm(dim=1).mean(0) / output(ones).norm(dim=1).mean()


@pytest.mark.parametrize(("order", "terms"), [(2, "full"), (2, "square"), (2, "cross"), (3, "full"), (3, "square")])
def test_is_the_mixed_second_derivative(order: int, terms: str) -> None:
    model = nn.Sequential(nn.Linear(9, 4), nn.Dropout(0.5))
    inject_adapter(model, PeraConfig(3, order, terms=terms, alpha=5, coefficient_scale=7.0))
    randomise_adapter(model)
    batches = [torch.randn(2, 2, 9), torch.randn(2, 9)]
    model.train()
    found = interaction_strength(model, batches)
    assert model.training
    expected = by_derivatives(model[0], torch.cat([batch.reshape(-1, 9) for batch in batches]))
    assert list(found) == ["0"]
    torch.testing.assert_close(found["0"].double(), expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(found["0"], found["0"].T)
    calls: list[Any] = [(batches[0],), batches[1]]
    torch.testing.assert_close(interaction_strength(model, calls)["0"], found["0"])


def test_embeddings_see_one_hot_tokens() -> None:
    model = nn.Sequential(nn.Embedding(11, 6))
    inject_adapter(model, PeraConfig(3, target_modules=["0"]))
    randomise_adapter(model)
    ids = torch.tensor([[3, 4, 4], [9, 1, 0]])
    expected = by_derivatives(model[0], nn.functional.one_hot(ids.reshape(-1), 11))
    torch.testing.assert_close(interaction_strength(model, [ids])["0"].double(), expected, rtol=1e-4, atol=1e-6)


def test_a_language_model_and_its_layers() -> None:
    model = tiny_llama()
    inject_adapter(model, PeraConfig(2, target_modules=["q_proj", "down_proj"]))
    # Its adapters do nothing yet.
    found = interaction_strength(model, [{"input_ids": token_ids()}])
    assert set(found) == {name for name, _ in adapted_layers(model)}
    assert not any(matrix.any() for matrix in found.values())
    randomise_adapter(model)
    assert all(matrix.gt(0).all() for matrix in interaction_strength(model, [{"input_ids": token_ids()}]).values())


def test_nothing_at_order_one() -> None:
    model = nn.Sequential(nn.Linear(9, 7))
    inject_adapter(model, PeraConfig(3, 1))
    assert interaction_strength(model, [torch.randn(2, 9)]) == {}


def test_needs_an_unmerged_adapter() -> None:
    with pytest.raises(InjectionError, match="without PERA layers"):
        interaction_strength(nn.Linear(2, 2), [])
    model = nn.Sequential(nn.Linear(9, 7))
    inject_adapter(model, PeraConfig(3))
    model[0].merge()
    with pytest.raises(InjectionError, match="merged"):
        interaction_strength(model, [torch.randn(2, 9)])
