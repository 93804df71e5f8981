"""Everything a user does with an adapter, on random models with random options; each seed is one case.

More cases: `PERA_PROPERTY_CASES=1500 pytest tests/injection/test_random_models.py`. One alone: `"...::test_case[17]"`.
"""

from __future__ import annotations

import copy
import os
import pickle
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

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
from pera_lightning.injection import adapted_layers
from tests.support.models import randomise_adapter
from tests.support.random_configs import random_options
from tests.support.random_models import RandomModel, random_model

CASES = int(os.environ.get("PERA_PROPERTY_CASES", "240"))
# Of the largest output, or of 1. A merge rounds each weight once to the base's dtype, and norms over few features magnify
# what comes of it: a few dozen units in the last place.
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


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    before = modes(model)
    model.train(training)
    yield
    for module in model.modules():
        module.training = before[id(module)]


def modes(model: nn.Module) -> dict[int, bool]:
    return {id(module): module.training for module in model.modules()}


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, each name of a shared one."""
    return dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)])


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tensors(model).items()}


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@dataclass(frozen=True)
class Before:
    """What a model was before the injection."""

    modules: dict[str, nn.Module]
    tensors: dict[str, Tensor]
    values: dict[str, Tensor]
    flags: dict[str, bool]
    modes: dict[int, bool]
    keys: list[str]

    @classmethod
    def of(cls, model: nn.Module) -> Before:
        modules = dict(model.named_modules(remove_duplicate=False))
        flags = {name: value.requires_grad for name, value in tensors(model).items()}
        return cls(modules, tensors(model), values(model), flags, modes(model), list(model.state_dict()))

    def assert_restored(self, model: nn.Module) -> None:
        """The same objects under the same names with the same values, flags and modes."""
        now = Before.of(model)
        for kind in ("modules", "tensors"):
            ours, theirs = getattr(now, kind), getattr(self, kind)
            assert list(ours) == list(theirs)
            assert all(ours[name] is theirs[name] for name in theirs)
        for name, value in self.values.items():
            assert torch.equal(now.values[name], value), name
        assert (now.flags, now.modes, now.keys) == (self.flags, self.modes, self.keys)
        assert not [name for module in model.modules() for name in vars(module) if "pera" in name]

    def freeze(self, model: nn.Module, report: InjectionReport) -> nn.Module:
        """Give the base the flags that it has under the adapter: torch's attention computes otherwise without gradients."""
        trained = self.trained(report)
        for name, value in model.named_parameters(remove_duplicate=False):
            value.requires_grad_(id(self.tensors[name]) in trained)
        return model

    def trained(self, report: InjectionReport) -> set[int]:
        """Ids of the tensors that training may change, beside the factors."""
        allowed: set[int] = set()
        for name in report.saved:
            found = tensors(self.modules[name]).values() if name in self.modules else [self.tensors[name]]
            allowed |= set(map(id, found))
        return allowed


def check_injection(case: Case, before: Before, report: InjectionReport) -> None:
    """One adapter on each layer, whatever its names, and only the adapter trainable."""
    layers = dict(adapted_layers(case.model))
    bases = [layer.base_layer for layer in layers.values()]
    assert tuple(sorted(report.adapted)) == tuple(sorted(before_name(before, base) for base in bases))
    assert len({*map(id, bases)}) == len(bases)
    everywhere = dict(case.model.named_modules(remove_duplicate=False))
    for name, module in before.modules.items():
        if any(module is base for base in bases) and name in everywhere:
            assert isinstance(everywhere[name], PeraLinear), name
    assert {id(module): before.modes[id(module)] for module in bases} == {id(base): base.training for base in bases}
    trainable = {id(value) for value in case.model.parameters() if value.requires_grad}
    factors = {id(value) for layer in layers.values() for value in layer.adapter().values()}
    assert trainable == factors | {
        key for key in before.trained(report) if key in set(map(id, case.model.parameters()))
    }


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
    layers = [layer for _, layer in adapted_layers(model)]
    tied = any(is_tied(model, layer) for layer in layers)
    for layer in layers:
        weight = layer.merged_weight()
        layer.merge()
        assert torch.equal(layer.weight, (weight.T if is_table(layer) else weight).to(layer.weight.dtype))
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
        for _, layer in adapted_layers(model):
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
        found.update(case.built.kinds | {"adapted"})
    assert found["adapted"] >= 0.8 * count
    if count == 200:
        rare = {kind: count for kind, count in found.items() if count < 5}
        assert not rare
