"""Each model of the zoo through each thing a user does with an adapter; docs/compatibility.md is made of what comes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pera_lightning import (
    inject_adapter,
    load_adapter,
    merge_adapter,
    quantize_model,
    remove_adapter,
    save_adapter,
)
from pera_lightning.injection import adapted_layers, adapter_parameters
from pera_lightning.requirements import is_outdated
from tests.conftest import OLD_MODELS
from tests.support.models import randomise_adapter
from tests.support.zoo import ZOO, Entry

# A merge rounds the sum of base and adapter once: a few units in the last place, through a few layers.
MERGE_TOLERANCE = {torch.float32: {"rtol": 1e-4, "atol": 2e-5}}
# The compiler may order sums otherwise.
COMPILE_TOLERANCE = {torch.float32: {"rtol": 1e-4, "atol": 2e-5}}

Check = Callable[[Entry], object]


def entries(check: str) -> pytest.MarkDecorator:
    rows = [entry for entry in ZOO if check in entry.checks]
    return pytest.mark.parametrize("entry", rows, ids=[entry.name for entry in rows])


@pytest.fixture
def found(record_property: Callable[[str, object], None]) -> Callable[[Entry, str], object]:
    """What a check runs in: reports the outcome to the table, and expects the error that the entry expects."""

    @contextmanager
    def run(entry: Entry, check: str) -> Iterator[None]:
        refusal = entry.refusals.get(check)
        if refusal is None:
            yield
            record_property("compatibility", (entry.name, check, ""))
            return
        with pytest.raises(refusal.error, match=refusal.words) as raised:
            yield
        record_property("compatibility", (entry.name, check, str(raised.value).splitlines()[0]))

    return run


def output(entry: Entry, model: nn.Module) -> Tensor:
    with torch.no_grad():
        return entry.call(model)


def loss(result: Tensor) -> Tensor:
    # Not the mean square, which behind a LayerNorm is always 1.
    target = torch.randn(result.shape, generator=torch.Generator().manual_seed(2))
    return nn.functional.mse_loss(result.float(), target)


def adapted(entry: Entry, scale: float = 0.1) -> nn.Module:
    model = entry.build()
    inject_adapter(model, entry.config)
    randomise_adapter(model, scale)
    return model


def step_changes_only_adapters(entry: Entry, model: nn.Module) -> None:
    """One step in training mode; every B starts at zero and gets a gradient."""
    model.train()
    ours = {id(parameter) for parameter in adapter_parameters(model)}
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    before = {name: value.detach().clone() for name, value in tensors.items() if id(value) not in ours}
    optimizer = torch.optim.Adam([value for value in model.parameters() if value.requires_grad], lr=0.01)
    value = loss(entry.call(model))
    assert value.isfinite()
    value.backward()
    optimizer.step()
    for name, old in before.items():
        assert torch.equal(tensors[name], old), name
        assert not tensors[name].requires_grad, name
    for name, layer in adapted_layers(model):
        assert layer.pera_B.isfinite().all(), name
        assert layer.pera_B.any(), f"{name} gets no gradient"


@entries("inject")
def test_inject(entry: Entry, found: Callable) -> None:
    model = entry.build()
    state, kinds = copy.deepcopy(model.state_dict()), [type(module) for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    plain = output(entry, model)
    # Of a frozen model: torch computes LSTMs and attention with other kernels where weights take no gradient.
    frozen = output(entry, entry.build().requires_grad_(False))
    with found(entry, "inject"):
        inject_adapter(model, entry.config)
        assert torch.equal(output(entry, model), frozen)
        trainable = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
        assert trainable == {id(parameter) for parameter in adapter_parameters(model)}
        every_adapter_takes_part(entry, model)
        remove_adapter(model)
    assert [type(module) for module in model.modules()] == kinds
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(output(entry, model), plain)


def every_adapter_takes_part(entry: Entry, model: nn.Module) -> None:
    """Also where torch reads a layer's weight instead of calling the layer."""
    randomise_adapter(model, 0.1)
    whole = output(entry, model)
    for name, layer in adapted_layers(model):
        layer.enabled = False
        assert not torch.equal(output(entry, model), whole), f"{name} is bypassed"
        layer.enabled = True
    # With gradients torch's attention and encoder take another path.
    torch.testing.assert_close(entry.call(model).detach(), whole, **MERGE_TOLERANCE[whole.dtype])


@entries("train")
def test_train(entry: Entry, found: Callable) -> None:
    with found(entry, "train"):
        model = entry.build()
        inject_adapter(model, entry.config)
        step_changes_only_adapters(entry, model)


@entries("save/load")
def test_save_and_load(entry: Entry, found: Callable, tmp_path: Path) -> None:
    with found(entry, "save/load"):
        model = adapted(entry)
        save_adapter(model, tmp_path)
        fresh = entry.build()
        assert not torch.equal(output(entry, fresh), output(entry, model))
        load_adapter(fresh, tmp_path)
        assert torch.equal(output(entry, fresh), output(entry, model))


@entries("merge")
def test_merge(entry: Entry, found: Callable) -> None:
    model = adapted(entry)
    expected, base = output(entry, model), output(entry, entry.build())
    with found(entry, "merge"):
        merge_adapter(model)
        assert not list(adapted_layers(model))
        assert not torch.allclose(expected, base, **MERGE_TOLERANCE[base.dtype])
    torch.testing.assert_close(output(entry, model), expected, **MERGE_TOLERANCE[base.dtype])


# Of Dynamo, about models that it cannot trace in one piece, with or without adapters.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning")
@entries("compile")
def test_compile(entry: Entry, found: Callable) -> None:
    if entry.name == "Mamba" and is_outdated("transformers", {"transformers": "5.23.0"}):
        pytest.skip(OLD_MODELS)
    with found(entry, "compile"):
        torch._dynamo.reset()
        model = adapted(entry)
        parameters = list(adapter_parameters(model))
        expected = entry.call(model)
        gradients = torch.autograd.grad(loss(expected), parameters)
        result = entry.call(torch.compile(model, backend="aot_eager"))
        torch.testing.assert_close(result, expected, **COMPILE_TOLERANCE[expected.dtype])
        loss(result).backward()
        for parameter, gradient in zip(parameters, gradients, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, **COMPILE_TOLERANCE[gradient.dtype])
        torch._dynamo.reset()


@entries("4-bit")
def test_four_bit(entry: Entry, found: Callable) -> None:
    with found(entry, "4-bit"):
        model = entry.build()
        quantize_model(model, "nf4")
        inject_adapter(model, entry.config)
        assert any(layer.quantization == "nf4" for _, layer in adapted_layers(model))
        step_changes_only_adapters(entry, model)
