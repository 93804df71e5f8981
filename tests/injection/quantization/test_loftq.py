"""The start from the quantisation error."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from pera_lightning import PeraConfig, inject_adapter, quantize_model
from pera_lightning.base_layers import base_of
from pera_lightning.errors import ConfigError, InjectionError
from pera_lightning.injection import adapted_layers, init_loftq
from tests.support.models import tiny_gpt2, tiny_llama
from tests.support.quantized import bits, same_bits


def quantised_pair(kind: Any = "nf4", make: Any = tiny_llama) -> tuple[nn.Module, nn.Module]:
    floating = make()
    model = copy.deepcopy(floating)
    quantize_model(model, kind)
    return model, floating


def residuals(model: nn.Module, floating: nn.Module) -> dict[str, float]:
    """Per layer: what is left between the adapted weight and the floating one, relative."""
    found = {}
    for name, layer in adapted_layers(model):
        plain = floating.get_submodule(name)
        weight = base_of(plain).weight(plain)
        effective = base_of(layer.base_layer).weight(layer.base_layer) + layer.delta_weight()
        found[name] = ((weight - effective).norm() / weight.norm()).item()
    return found


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("kind", ["nf4", "nf4-dq", "int8"])
def test_is_the_best_approximation_of_this_rank(make: Any, kind: Any) -> None:
    model, floating = quantised_pair(kind, make)
    expected = {}
    for name, module in floating.named_modules():
        quantised = model.get_submodule(name)
        base = base_of(quantised)
        if base is not None and base.quantization(quantised) is not None:
            weight = base_of(module).weight(module)
            singular = torch.linalg.svdvals((weight - base.weight(quantised)).double())
            expected[name] = (singular[3:].norm() / weight.norm()).item()
    inject_adapter(model, PeraConfig(3, alpha=6.0, init="loftq"), float_model=floating)
    found = residuals(model, floating)
    assert found.keys() == expected.keys()
    for name, error in found.items():
        # The randomised decomposition is a little worse than the best one.
        assert expected[name] * (1 - 1e-4) <= error <= expected[name] * 1.01, name
    assert all(layer.pera_h.eq(0).all() for _, layer in adapted_layers(model))


def test_one_step_leaves_the_base_alone() -> None:
    model, floating = quantised_pair()
    before = bits(model)
    inject_adapter(model, PeraConfig(3, init="loftq"), float_model=floating)
    after = {name.replace(".base_layer", ""): value for name, value in bits(model).items()}
    assert same_bits(after, before)


def test_more_steps_come_closer() -> None:
    errors = []
    for steps in (1, 5):
        torch.manual_seed(0)
        model, floating = quantised_pair()
        inject_adapter(model, PeraConfig(8, init="loftq", loftq_steps=steps), float_model=floating)
        errors.append(sum(residuals(model, floating).values()))
    assert errors[1] < errors[0]


def test_report(caplog: pytest.LogCaptureFixture) -> None:
    model, floating = quantised_pair()
    inject_adapter(model, PeraConfig(8))
    before = residuals(model, floating)
    report = init_loftq(model, floating)
    after = residuals(model, floating)
    assert min(before.values()) < report.error_before < max(before.values())
    assert min(after.values()) < report.error_after < max(after.values())
    assert report.error_after < report.error_before
    assert report.layers == 14


def test_same_weights_same_start() -> None:
    starts = []
    for seed in (0, 1):
        torch.manual_seed(7)
        model, floating = quantised_pair()
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        inject_adapter(model, PeraConfig(3), float_model=None)
        torch.set_rng_state(state)
        init_loftq(model, floating)
        starts.append([layer.pera_A.clone() for _, layer in adapted_layers(model)])
    assert all(torch.equal(one, other) for one, other in zip(*starts, strict=True))


def test_a_rank_above_the_size_of_a_layer() -> None:
    model = nn.Sequential(nn.Linear(6, 64), nn.Linear(64, 64), nn.Linear(64, 3))
    floating = copy.deepcopy(model)
    quantize_model(model, "nf4")
    inject_adapter(model, PeraConfig(10, init="loftq"), float_model=floating)
    assert residuals(model, floating)["0"] < 1e-5


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda model, floating: (model, None), "needs the floating weights"),
        (lambda model, floating: (floating, floating), "no adapted layer over a quantised base"),
        (lambda model, floating: (model, tiny_llama(intermediate_size=40)), "mlp.gate_proj'"),
        (lambda model, floating: (model, nn.Linear(3, 3)), "no floating linear layer"),
        (lambda model, floating: (model, copy.deepcopy(model)), "no floating linear layer"),
    ],
)
def test_wrong_input_leaves_no_adapter(prepare: Any, words: str) -> None:
    model, floating = prepare(*quantised_pair())
    before = bits(model)
    with pytest.raises(ConfigError, match=words):
        inject_adapter(model, PeraConfig(3, init="loftq"), float_model=floating)
    assert not list(adapted_layers(model))
    assert same_bits(bits(model), before)


@pytest.mark.parametrize("options", [{"init": "pissa"}, {"loftq_steps": 0}, {"loftq_steps": 1.5}])
def test_options(options: Any) -> None:
    with pytest.raises(ConfigError):
        PeraConfig(**options)


def test_merged_layers_are_refused() -> None:
    model, floating = quantised_pair()
    inject_adapter(model, PeraConfig(3))
    _, layer = next(adapted_layers(model))
    layer.merge()
    with pytest.raises(InjectionError, match="is merged"):
        init_loftq(model, floating)


@pytest.mark.parametrize("steps", [0, -1, 1.5, "2"])
def test_steps_are_checked_before_anything_changes(steps: Any) -> None:
    model, floating = quantised_pair()
    inject_adapter(model, PeraConfig(3))
    before = [layer.pera_A.clone() for _, layer in adapted_layers(model)]
    with pytest.raises(ConfigError, match="steps"):
        init_loftq(model, floating, steps=steps)
    assert all(
        torch.equal(layer.pera_A, value) for (_, layer), value in zip(adapted_layers(model), before, strict=True)
    )


def test_infinite_weights_leave_no_adapter() -> None:
    model, floating = quantised_pair()
    before = bits(model)
    with torch.no_grad():
        floating.model.layers[1].mlp.up_proj.weight[0, 0] = float("inf")
    with pytest.raises(ConfigError, match=r"layers.1.mlp.up_proj' with NaN or infinity"):
        inject_adapter(model, PeraConfig(3, init="loftq", loftq_steps=2), float_model=floating)
    assert not list(adapted_layers(model))
    assert same_bits(bits(model), before)
