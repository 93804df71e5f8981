"""A `Linear` that is a compiled module by itself kept calling itself: its adapter counted, was saved, and never ran."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from pera_lightning import (
    PeraConfig,
    inject_adapter,
    load_adapter,
    merge_adapter,
    quantize_model,
    remove_adapter,
    save_adapter,
)
from pera_lightning.errors import TargetError
from pera_lightning.injection import adapted_layers
from tests.support.models import randomise_adapter
from tests.support.reference import reference_delta_weight

WIDTH = 8


@pytest.fixture(autouse=True)
def nothing_compiled() -> None:
    """The compiler counts how often it has seen a piece of code, in other tests too."""
    torch._dynamo.reset()


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.inner(x))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.block, self.head = nn.Linear(WIDTH, WIDTH), Block(), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(torch.tanh(self.first(x))))


def network() -> Network:
    torch.manual_seed(0)
    return Network()


def compiled(module: nn.Module) -> nn.Module:
    return torch.compile(module, backend="eager")  # type: ignore[return-value]


def wrap_first(model: Network) -> nn.Module:
    model.first = compiled(model.first)  # type: ignore[assignment]
    return model


def wrap_first_twice(model: Network) -> nn.Module:
    return compiled(wrap_first(model))


def wrap_checkpointed(model: Network) -> nn.Module:
    model.first = compiled(checkpoint_wrapper(model.first))  # type: ignore[assignment]
    return model


def wrap_first_uncompiled(model: Network) -> nn.Module:
    model.first = torch.compiler.disable(model.first)
    return compiled(model)


def checkpoint_compiled(model: Network) -> nn.Module:
    model.first = checkpoint_wrapper(compiled(model.first))  # type: ignore[assignment]
    return model


def compile_first_in_place(model: Network) -> nn.Module:
    model.first.compile(backend="eager")
    return model


def compile_its_forward(model: Network) -> nn.Module:
    model.first.forward = torch.compile(model.first.forward, backend="eager")  # type: ignore[method-assign]
    return model


def wrap_block(model: Network) -> nn.Module:
    model.block = compiled(model.block)  # type: ignore[assignment]
    return model


def compile_block_in_place(model: Network) -> nn.Module:
    model.block.compile(backend="eager")
    return model


def trace_symbolically(model: Network) -> nn.Module:
    return torch.fx.symbolic_trace(model)


WAYS = (
    wrap_first,
    wrap_first_twice,
    wrap_checkpointed,
    wrap_first_uncompiled,
    checkpoint_compiled,
    compile_first_in_place,
    compile_its_forward,
    wrap_block,
    compile_block_in_place,
    compiled,
    trace_symbolically,
)
CONFIG = PeraConfig(2, 2, target_modules=["first", "inner"])


@torch.no_grad()
def by_hand(adapted: nn.Module, x: Tensor) -> Tensor:
    """The plain network with the adapter's weight, entry by entry, added to the weights."""
    model = network()
    parts = {"first": model.first, "block.inner": model.block.inner}
    for name, layer in adapted_layers(adapted):
        change = reference_delta_weight(layer.pera_A, layer.pera_B, layer.pera_h, 2, "full", layer.scaling)
        parts[name].weight += change
    return model(x)


@pytest.mark.parametrize("used_before", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_the_adapter_is_called(way: Callable[[Network], nn.Module], used_before: bool, tmp_path: Path) -> None:
    x = torch.randn(4, WIDTH)
    expected = network()(x)
    model = way(network())
    if used_before:
        model(x)
    report = inject_adapter(model, CONFIG)
    assert report.adapted == ("first", "block.inner")
    torch.testing.assert_close(model(x), expected)
    randomise_adapter(model)
    torch.testing.assert_close(model(x), by_hand(model, x), rtol=1e-4, atol=1e-5)
    model(x).square().sum().backward()
    for name, layer in adapted_layers(model):
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in layer.adapter().values()), name
    save_adapter(model, tmp_path)
    keys = load_file(tmp_path / "adapter_model.safetensors").keys()
    assert {key.rpartition(".")[0] for key in keys} == {"first", "block.inner"}
    plain = network()
    load_adapter(plain, tmp_path)
    torch.testing.assert_close(plain(x), model(x))


@pytest.mark.parametrize("take_out", [merge_adapter, remove_adapter])
@pytest.mark.parametrize("way", WAYS)
def test_merged_or_taken_out_it_is_called_no_more(
    way: Callable[[Network], nn.Module], take_out: Callable[[nn.Module], nn.Module]
) -> None:
    x = torch.randn(4, WIDTH)
    expected = network()(x)
    model = way(network())
    inject_adapter(model, CONFIG)
    randomise_adapter(model)
    if take_out is merge_adapter:
        expected = model(x)
    take_out(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    assert not list(adapted_layers(model))


def test_a_compiled_embedding_and_head_of_trained_tokens_are_called() -> None:
    table = nn.Embedding(10, WIDTH)
    model = nn.Sequential(compiled(table), nn.Linear(WIDTH, WIDTH))
    expected = model(torch.tensor([1, 2]))
    inject_adapter(model, PeraConfig(2, target_modules=["1"], trainable_tokens={"0": [2]}))
    with torch.no_grad():
        next(value for name, value in model.named_parameters() if name.endswith("delta")).fill_(1.0)
    change = model(torch.tensor([1, 2])) - expected
    torch.testing.assert_close(change[0], torch.zeros(WIDTH))
    assert change[1].abs().sum() > 0.1


def test_a_compiled_layer_is_quantised_where_it_is_called() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(compiled(nn.Linear(64, 64)), nn.Linear(64, 64), nn.Linear(64, 2))
    x = torch.randn(3, 64)
    before = model[0](x)
    quantize_model(model, "nf4")
    assert 0.01 < (model[0](x) - before).norm() / before.norm() < 0.3


def test_a_compiled_linear_alone_has_no_name_to_adapt() -> None:
    with pytest.raises(TargetError, match="no linear layer"):
        inject_adapter(compiled(nn.Linear(4, 4)), PeraConfig(2))


@pytest.mark.parametrize("freeze", [torch.jit.script, lambda module: torch.jit.trace(module, torch.randn(2, WIDTH))])
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_scripted_parts_are_named_or_refused(freeze: Callable[[nn.Module], nn.Module]) -> None:
    model = network()
    model.block = freeze(model.block)  # type: ignore[assignment]
    with pytest.raises(TargetError, match="no linear layer"):
        inject_adapter(model, PeraConfig(2, target_modules=["inner"]))
    report = inject_adapter(model, PeraConfig(2))
    assert report.adapted == ("first",)
    assert report.unreached == ("block.inner.weight",)
