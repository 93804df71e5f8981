"""The adapted model under torch.compile: one graph, no recompilation, the same numbers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from pera_lightning import PeraConfig, PeraLinear, inject_adapter
from tests.support.models import randomise_adapter, tiny_llama, token_ids


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "config",
    [PeraConfig(4, 2), PeraConfig(4, 1), PeraConfig(3, 3, terms="cross"), PeraConfig(4, coefficient_scale="auto")],
    ids=["order 2", "order 1", "order 3", "auto scale"],
)
def test_training_steps(config: PeraConfig) -> None:
    model = tiny_llama().train()
    inject_adapter(model, config)
    randomise_adapter(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.01)
    for _ in range(3):
        ids = token_ids(3, 8)
        expected = torch.autograd.grad(model(input_ids=ids, labels=ids).loss, parameters)
        compiled(input_ids=ids, labels=ids).loss.backward()
        for parameter, gradient in zip(parameters, expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)
        optimizer.step()
        optimizer.zero_grad()
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_dropout_is_the_same_in_both_directions() -> None:
    """The gradient is the slope of the output under one and the same mask."""
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 5)).double().train()
    inject_adapter(model, PeraConfig(4, dropout=0.5, target_modules=["0", "2"]))
    randomise_adapter(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.randn(3, 12, dtype=torch.float64)
    factor = model[0].pera_B

    def loss(step: float) -> torch.Tensor:
        torch.manual_seed(1)
        with torch.no_grad():
            factor[0, 0] += step
        result = compiled(x).square().sum()
        with torch.no_grad():
            factor[0, 0] -= step
        return result

    (gradient,) = torch.autograd.grad(loss(0.0), factor)
    slope = (loss(1e-5) - loss(-1e-5)).item() / 2e-5
    assert gradient[0, 0].item() == pytest.approx(slope, rel=1e-6)
    torch.manual_seed(2)
    assert compiled(x).square().sum() != loss(0.0)


def test_evaluation_after_a_change_of_parameters() -> None:
    """Nothing computed from the parameters is baked into the compiled model."""
    model = tiny_llama()
    inject_adapter(model, PeraConfig(4))
    randomise_adapter(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    ids = token_ids(2, 5)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(compiled(input_ids=ids).logits, model(input_ids=ids).logits)
            randomise_adapter(model)
    assert counters["stats"]["unique_graphs"] == 1


def test_layers_that_share_a_compiled_forward() -> None:
    """Other scalings and other numbers of tokens, compiled layer by layer: no break of the graph."""
    for alpha in (4, 8, 12):
        layer = PeraLinear(nn.Linear(32, 48), PeraConfig(3, coefficient_scale=alpha / 2), alpha=alpha)
        randomise_adapter(layer)
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        for tokens in (4, 7, 9):
            x = torch.randn(tokens, 32)
            torch.testing.assert_close(compiled(x), layer(x))
