"""What is kept between calls in eval mode: made once, dropped whenever a parameter changes, never saved."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pera_lightning import PeraConfig, PeraLinear
from pera_lightning.layers import pera_linear
from tests.support.operations import CountOperations


def layer_of(rank: int = 3, order: int = 2) -> PeraLinear:
    layer = PeraLinear(nn.Linear(10, 7), PeraConfig(rank, order)).eval()
    with torch.no_grad():
        layer.pera_B.normal_()
        if layer.pera_h is not None:
            layer.pera_h.normal_()
    return layer


def exact(layer: PeraLinear, x: Tensor) -> Tensor:
    return x @ (layer.base_layer.weight + layer.delta_weight()).T + layer.base_layer.bias


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The path of every preparation of operands."""
    paths: list[str] = []
    prepare = pera_linear.prepare

    def watched(path: str, *arguments: object, **options: object) -> object:
        paths.append(path)
        return prepare(path, *arguments, **options)

    monkeypatch.setattr(pera_linear, "prepare", watched)
    return paths


def test_made_once(made: list[str]) -> None:
    layer, x = layer_of(), torch.randn(2, 10)
    with torch.no_grad():
        outputs = [layer(x) for _ in range(3)]
    with torch.inference_mode():
        outputs.append(layer(x))
    assert len(made) == 1
    for output in outputs:
        torch.testing.assert_close(output, exact(layer, x))


def optimizer_step(layer: PeraLinear) -> None:
    layer.pera_B.grad = torch.ones_like(layer.pera_B)
    torch.optim.AdamW([layer.pera_B], lr=0.1).step()


@torch.enable_grad()
def fused_step_in_eval_mode(layer: PeraLinear) -> None:
    layer(torch.randn(2, 10)).sum().backward()
    torch.optim.AdamW([layer.pera_h], lr=0.1, fused=True).step()


def foreach_step(layer: PeraLinear) -> None:
    layer.pera_A.grad = torch.ones_like(layer.pera_A)
    torch.optim.SGD([layer.pera_A], lr=0.1, foreach=True).step()


@torch.no_grad()
def in_place(layer: PeraLinear) -> None:
    layer.pera_A[0].mul_(2)


def loading(layer: PeraLinear) -> None:
    layer.load_state_dict(layer_of().state_dict())


def assigning(layer: PeraLinear) -> None:
    layer.load_state_dict(layer_of().state_dict(), assign=True)


def replacing(layer: PeraLinear) -> None:
    layer.pera_B = nn.Parameter(layer.pera_B.detach() + 1)


def exchanging_memory(layer: PeraLinear) -> None:
    layer.pera_B.data = layer.pera_B.data + 1


def half_and_back(layer: PeraLinear) -> None:
    layer.bfloat16().float()


def double(layer: PeraLinear) -> None:
    layer.double()


def scaling(layer: PeraLinear) -> None:
    layer.scaling = 0.5


def other_config(layer: PeraLinear) -> None:
    layer.config = PeraConfig(3, coefficient_scale=5.0)


def edit_of_data_then_eval(layer: PeraLinear) -> None:
    layer.pera_B.data.add_(1)
    layer.eval()


CHANGES = [
    optimizer_step,
    fused_step_in_eval_mode,
    foreach_step,
    in_place,
    loading,
    assigning,
    replacing,
    exchanging_memory,
    half_and_back,
    double,
    scaling,
    other_config,
    edit_of_data_then_eval,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_dropped_by(change: Callable[[PeraLinear], None]) -> None:
    layer, x = layer_of(), torch.randn(2, 10)
    with torch.no_grad():
        before = layer(x)
        change(layer)
        x = x.to(layer.pera_A.dtype)
        after = layer(x)
        torch.testing.assert_close(after, exact(layer, x))
    assert change is double or not torch.allclose(after, before, atol=1e-6)


def test_other_dtypes_and_token_counts_are_told_apart(made: list[str]) -> None:
    layer = layer_of(8)
    with torch.no_grad():
        for tokens in (1, 5, 64, 5):
            x = torch.randn(tokens, 10)
            torch.testing.assert_close(layer(x), exact(layer, x))
        x = torch.randn(5, 10)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            # 8 bits, and entries up to about 40.
            torch.testing.assert_close(layer(x).float(), exact(layer, x).float(), rtol=0.05, atol=0.5)
        torch.testing.assert_close(layer(x), exact(layer, x))


def test_nothing_is_kept_for_many_tokens(made: list[str]) -> None:
    layer, x = layer_of(), torch.randn(65, 10)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(layer(x), exact(layer, x))
    assert not made
    assert layer._operand_cache._held is None


def test_training_forgets(made: list[str]) -> None:
    layer, x = layer_of(), torch.randn(2, 10)
    with torch.no_grad():
        layer(x)
    layer.train()
    assert layer._operand_cache._held is None
    assert layer(x).requires_grad
    assert len(made) == 1


@pytest.mark.parametrize("move", [nn.Module.float, nn.Module.cpu, nn.Module.double])
def test_moving_the_module_forgets(move: Callable[[nn.Module], nn.Module]) -> None:
    """Even where the old memory is given out again, at the same address."""
    model = nn.Sequential(layer_of())
    with torch.no_grad():
        model(torch.randn(2, 10))
    assert model[0]._operand_cache._held is not None
    move(model)
    assert model[0]._operand_cache._held is None


def test_gradients_flow_in_eval_mode_whatever_is_kept() -> None:
    layer, x = layer_of(), torch.randn(2, 10, requires_grad=True)
    with torch.no_grad():
        layer(x)
    layer(x).sum().backward()
    assert layer.pera_A.grad.abs().sum() > 0
    assert x.grad is not None


def test_inference_parameters_are_compared_like_others(made: list[str]) -> None:
    with torch.inference_mode():
        layer, x = layer_of(), torch.randn(2, 10)
        for _ in range(2):
            for _ in range(2):
                torch.testing.assert_close(layer(x), exact(layer, x))
            layer.pera_B.add_(1)
    assert len(made) == 2


def test_nothing_is_kept_of_factors_that_cannot_be_compared_at_once(made: list[str]) -> None:
    layer, x = layer_of(), torch.randn(2, 10)
    with torch.no_grad():
        layer.pera_B.data = layer.pera_B.data.t().contiguous().t()
        for _ in range(2):
            torch.testing.assert_close(layer(x), exact(layer, x))
        assert layer.to("meta")(x.to("meta")).shape == (2, 7)
    assert not made


def test_who_counts_operations_sees_those_of_the_expansion(made: list[str]) -> None:
    layer, x, counts = layer_of(), torch.randn(2, 10), []
    with torch.no_grad():
        layer(x)
        for _ in range(2):
            with CountOperations() as operations:
                layer(x)
            counts.append(operations.found)
    assert counts[0] == counts[1]
    assert counts[0]["index_select"] > 0
    assert len(made) == 1


@pytest.mark.parametrize("way", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_start_empty(way: Callable[[PeraLinear], PeraLinear]) -> None:
    layer, x = layer_of(), torch.randn(2, 10)
    size = len(pickle.dumps(layer))
    with torch.no_grad():
        layer(x)
        assert len(pickle.dumps(layer)) == size
        other = way(layer)
        assert other._operand_cache._held is None
        other.pera_B.add_(1)
        torch.testing.assert_close(other(x), exact(other, x))
        torch.testing.assert_close(layer(x), exact(layer, x))


def test_nothing_kept_is_saved() -> None:
    layer = layer_of()
    names = set(layer.state_dict())
    with torch.no_grad():
        layer(torch.randn(1, 10))
    assert set(layer.state_dict()) == names
    torch.save(layer.state_dict(), io.BytesIO())


@pytest.mark.parametrize("rank", [2, 8, 32])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_eval_and_training_compute_the_same(rank: int, order: int, tokens: int) -> None:
    if rank == 32 and order == 3:
        rank = 12
    layer, x = layer_of(rank, order).double(), torch.randn(tokens, 10, dtype=torch.float64)
    with torch.no_grad():
        kept = layer(x)
    torch.testing.assert_close(kept, layer.train()(x), rtol=1e-9, atol=1e-9)


def test_a_negative_view_is_not_its_negation() -> None:
    torch.manual_seed(0)
    layer = PeraLinear(nn.Linear(6, 5), PeraConfig(2)).eval()
    nn.init.normal_(layer.pera_B)
    x = torch.randn(3, 6)
    with torch.no_grad():
        layer(x)
        negative = torch._neg_view(layer.pera_A.data.clone())
        layer.pera_A.data = negative
        y = layer(x)
        layer.pera_A.data = negative.resolve_neg().clone()
        torch.testing.assert_close(y, layer(x))
