"""Everything a user does with an adapter, on random models with random options; each seed is one case.

More cases: `PERA_PROPERTY_CASES=1500 pytest tests/injection/test_random_models.py`. One alone: `"...::test_case[17]"`.
"""

from __future__ import annotations

import copy
import math
import os
import pickle
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from pera_lightning import (
    InjectionReport,
    PeraConfig,
    PeraLinear,
    adapter_disabled,
    adapter_state_dict,
    inject_adapter,
    load_adapter,
    merge_adapter,
    remove_adapter,
    save_adapter,
)
from pera_lightning.errors import ConfigError, InjectionError, TargetError
from pera_lightning.injection import adapted_layers, adapter_layers, token_layers
from pera_lightning.layers import TokenRowsLayer
from tests.support.models import randomise_adapter
from tests.support.module_state import Before, in_mode, tensors, values
from tests.support.random_configs import random_options
from tests.support.random_models import RandomModel, random_model

CASES = int(os.environ.get("PERA_PROPERTY_CASES", "210"))
# Of the largest output, or of 1. A merge rounds each weight once to the base's dtype, and norms over few features
# magnify what comes of it: a few dozen units in the last place.
MERGE_TOLERANCE = {torch.float64: 1e-13, torch.float32: 3e-5, torch.bfloat16: 0.1}
LR = 0.1


@dataclass(frozen=True)
class Case:
    """One model with one set of options."""

    seed: int
    built: RandomModel
    options: dict[str, Any]
    wrong: bool

    @property
    def model(self) -> nn.Module:
        return self.built.model

    @cached_property
    def config(self) -> PeraConfig:
        return PeraConfig(**self.options)

    def outputs(self, model: nn.Module) -> list[Tensor]:
        """What a model computes in eval mode."""
        with in_mode(model, False), torch.no_grad():
            return [model(x) for x in self.built.inputs]


def case_of(seed: int) -> Case:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    built = random_model(rng)
    return Case(seed, built, *random_options(rng, built.model))


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def check_injection(case: Case, before: Before, report: InjectionReport) -> None:
    """One adapter on each layer that is meant, whatever its names, and only the adapter trainable."""
    layers = {before_name(before, layer.base_layer): layer for _, layer in adapted_layers(case.model)}
    assert set(layers) == set(report.adapted) == meant_layers(case, before, report)
    assert len(list(adapted_layers(case.model))) == len(report.adapted)
    rows = {before_name(before, layer.base_layer): layer for layer in wrappers_of_rows(case.model)}
    assert {name: len(layer.ids) for name, layer in token_layers(case.model)} == report.tokens
    assert set(rows) == {before_name(before, module) for module in sharing(before, report.tokens)}
    now = dict(case.model.named_modules(remove_duplicate=False))
    assert all(before.modes.get(id(module), module.training) == module.training for module in now.values())
    for name in before.modules.keys() & now.keys():
        first = before_name(before, before.modules[name])
        adapter = layers.get(first) or rows.get(first)
        assert now[name] is (adapter or before.modules[name]), name
    for name, layer in layers.items():
        rank = by_pattern(case.config.rank_pattern, name, case.config.rank)
        alpha = by_pattern(case.config.alpha_pattern, name, case.config.alpha) or rank
        assert layer.pera_A.shape[0] == rank
        assert layer.scaling == alpha / (math.sqrt(rank) if case.config.use_rslora else rank)
        assert layer.training == layer.base_layer.training
    trainable = {id(value) for value in case.model.parameters() if value.requires_grad}
    factors = {id(value) for _, layer in adapter_layers(case.model) for value in layer.adapter().values()}
    own = {id(value) for value in case.model.parameters()}
    assert trainable == factors | (before.trained(report) & own)


def wrappers_of_rows(model: nn.Module) -> list[TokenRowsLayer]:
    return [module for module in model.modules() if isinstance(module, TokenRowsLayer)]


def sharing(before: Before, names: Mapping[str, int]) -> list[nn.Module]:
    """The modules that hold the weights of the named ones."""
    weights = {id(before.modules[name].weight) for name in names}
    return [module for module in before.modules.values() if id(module._parameters.get("weight")) in weights]


def meant_layers(case: Case, before: Before, report: InjectionReport) -> set[str]:
    """The layers that the options ask for, each by its first name."""
    config, first = case.config, {before_name(before, module): module for module in before.modules.values()}
    kinds = (nn.Linear, Conv1D) if isinstance(config.target_modules, str) else (nn.Linear, Conv1D, nn.Embedding)
    found = {name for name, module in first.items() if isinstance(module, kinds)}
    if config.target_modules == "all-linear":
        found -= set(report.head)
    else:
        found = {name for name in found if matched(name, config.target_modules)}
    left_out = {name for name in first if matched(name, config.exclude_modules)}
    left_out |= {name for name in first if matched(name, config.modules_to_save)}
    return {name for name in found if not any(f"{name}.".startswith(f"{other}.") for other in left_out)}


def matched(name: str, patterns: str | Sequence[str]) -> bool:
    if isinstance(patterns, str):
        return re.fullmatch(patterns, name) is not None
    return any(f".{name}".endswith(f".{pattern}") for pattern in patterns)


def by_pattern(patterns: Mapping[str, Any] | None, name: str, otherwise: Any) -> Any:
    found = (value for key, value in (patterns or {}).items() if matched(name, [key]) or matched(name, key))
    return next(found, otherwise)


def before_name(before: Before, module: nn.Module) -> str:
    return next(name for name, other in before.modules.items() if other is module)


def check_training(case: Case, before: Before, report: InjectionReport) -> None:
    """A step changes the adapter and what is trained beside it, nothing else."""
    model = case.model
    saved = {id(part) for name in report.saved if name in before.modules for part in before.modules[name].modules()}
    kinds = [torch.optim.SGD, torch.optim.AdamW]
    optimizer = kinds[case.seed % 2]([value for value in model.parameters() if value.requires_grad], lr=LR)
    with in_mode(model, True):
        for module in model.modules():
            # Their statistics would drift; PeraCallback does the same.
            if isinstance(module, nn.BatchNorm1d) and id(module) not in saved:
                module.eval()
        output = model(case.built.inputs[0])
        if output.requires_grad:
            (output.double() - 1).square().sum().backward()
    for name, layer in adapted_layers(model):
        assert name.endswith("idle") or layer.pera_B.grad is not None, name
        for own, parameter in layer.adapter().items():
            assert parameter.grad is None or parameter.grad.isfinite().all(), f"{name}.{own}"
    optimizer.step()
    allowed = before.trained(report)
    for name, value in before.values.items():
        assert id(before.tensors[name]) in allowed or torch.equal(before.tensors[name], value), name
    assert all(value.isfinite().all() for value in model.parameters())


def train_further(case: Case, before: Before, report: InjectionReport) -> None:
    """Values as many steps would give them."""
    randomise_adapter(case.model, 0.2)
    allowed = before.trained(report)
    with torch.no_grad():
        for parameter in case.model.parameters():
            if id(parameter) in allowed:
                parameter.add_(torch.rand_like(parameter), alpha=0.2)


def check_files(case: Case, base: nn.Module, folder: Path, expected: list[Tensor]) -> None:
    save_adapter(case.model, folder)
    report = load_adapter(base, folder)
    assert report is not None
    ours, theirs = adapter_state_dict(case.model), adapter_state_dict(base)
    assert list(theirs) == list(ours)
    assert all(torch.equal(theirs[key], ours[key]) for key in ours)
    assert_same(case.outputs(base), expected)
    trainable = [value.requires_grad for value in case.model.parameters()]
    assert [value.requires_grad for value in base.parameters()] == trainable


def check_copies(case: Case, expected: list[Tensor]) -> None:
    assert_same(case.outputs(copy.deepcopy(case.model)), expected)
    # torch refuses to pickle parametrized modules.
    if not any(hasattr(module, "parametrizations") for module in case.model.modules()):
        assert_same(case.outputs(pickle.loads(pickle.dumps(case.model))), expected)


def check_merged_layers(case: Case, base: list[Tensor], expected: list[Tensor]) -> None:
    """Merged for a while, layer by layer."""
    model, untouched = case.model, values(case.model)
    layers = [layer for _, layer in adapter_layers(model)]
    tied = any(is_tied(model, layer) for _, layer in adapted_layers(model))
    for layer in layers:
        if isinstance(layer, PeraLinear):
            weight = layer.merged_weight()
            wanted = (weight.T if is_table(layer) else weight).to(layer.weight.dtype)
        else:
            wanted = layer.weight.clone()
        layer.merge()
        assert torch.equal(layer.weight, wanted)
    if not tied:
        assert_close(case, case.outputs(model), expected)
    merged = case.outputs(model)
    with adapter_disabled(model):
        assert_same(case.outputs(model), base)
    assert_same(case.outputs(model), merged)
    for layer in reversed(layers):
        layer.unmerge()
    assert_same(list(values(model).values()), list(untouched.values()))
    assert_same(case.outputs(model), expected)


def is_table(layer: PeraLinear) -> bool:
    return isinstance(layer.base_layer, nn.Embedding)


def is_tied(model: nn.Module, layer: PeraLinear) -> bool:
    weight = layer.base_layer.weight
    return sum(any(own is weight for own in module._parameters.values()) for module in model.modules()) > 1


def check_merged_model(case: Case, before: Before, expected: list[Tensor]) -> None:
    model = copy.deepcopy(case.model)
    if any(is_tied(model, layer) for _, layer in adapted_layers(model)):
        untouched = values(model)
        with pytest.raises(InjectionError, match="tied"):
            merge_adapter(model)
        assert_same(list(values(model).values()), list(untouched.values()))
        return
    assert merge_adapter(model) is model
    assert_close(case, case.outputs(model), expected)
    assert [type(module) for module in model.modules()] == [type(module) for module in unique(before.modules)]
    assert list(model.state_dict()) == before.keys
    assert {name: value.requires_grad for name, value in tensors(model).items()} == before.flags


def unique(modules: dict[str, nn.Module]) -> list[nn.Module]:
    return list({id(module): module for module in modules.values()}.values())


def assert_close(case: Case, found: list[Tensor], expected: list[Tensor]) -> None:
    coarsest = max((value.dtype for value in case.model.parameters()), key=lambda dtype: torch.finfo(dtype).eps)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        if one.numel():
            error = (one - other).abs().max() / other.abs().max().clamp_min(1)
            assert error <= MERGE_TOLERANCE[coarsest]


@pytest.mark.parametrize("seed", range(CASES))
def test_case(seed: int, tmp_path: Path) -> None:
    case = case_of(seed)
    model, before = case.model, Before.of(case.model)
    try:
        report = inject_adapter(model, case.config)
    except (ConfigError, TargetError):
        before.assert_restored(model)
        return
    assert not case.wrong
    remove_adapter(model)
    before.assert_restored(model)
    fresh = copy.deepcopy(model)
    base = case.outputs(before.freeze(fresh, report))
    torch.manual_seed(seed)
    assert inject_adapter(model, case.config) == report
    check_injection(case, before, report)
    assert_same(case.outputs(model), base)
    check_training(case, before, report)
    # What the layers keep of this call must not outlive the next change.
    case.outputs(model)
    train_further(case, before, report)
    trained = case.outputs(model)
    check_files(case, fresh, tmp_path, trained)
    with adapter_disabled(model):
        assert_same(case.outputs(model), base)
    assert_same(case.outputs(model), trained)
    check_copies(case, trained)
    check_merged_layers(case, base, trained)
    check_merged_model(case, before, trained)
    if seed % 3 == 0:
        for _, layer in adapter_layers(model):
            layer.merge()
    assert remove_adapter(model) is model
    before.assert_restored(model)
    assert_same(case.outputs(before.freeze(model, report)), base)


def test_the_cases_are_what_they_are_meant_to_be() -> None:
    """Most cases get past the injection, and every kind of trouble is among them."""
    found: Counter[str] = Counter()
    count = min(CASES, 200)
    for seed in range(count):
        case = case_of(seed)
        try:
            inject_adapter(case.model, case.config)
        except (ConfigError, TargetError):
            continue
        found.update(case.built.kinds | {"adapted"} | ({"token rows"} if case.config.trainable_tokens else set()))
    assert found["adapted"] >= 0.8 * count
    if count == 200:
        rare = {kind: count for kind, count in found.items() if count < 5}
        assert not rare
