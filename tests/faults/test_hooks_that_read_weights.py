"""Hooks that read their module's weight otherwise than by a literal `.weight` scaled by the frozen one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from pera_lightning import PeraConfig, inject_adapter, merge_adapter
from pera_lightning.layers.call_hooks import hook_reads_weight
from tests.support.adapted_network import NAMED, assert_refused, changed, network
from tests.support.layer_kinds import WIDTH
from tests.support.models import randomise_adapter

NAME = "wei" + "ght"


def norm(module: Any, output: Tensor) -> Tensor:
    return output / module.weight.norm()


def by_helper(module: Any, args: Any, output: Tensor) -> Tensor:
    return norm(module, output)


def by_parameters(module: Any, args: Any, output: Tensor) -> Tensor:
    return output / next(module.parameters()).norm()


def by_state_dict(module: Any, args: Any, output: Tensor) -> Tensor:
    return output / module.state_dict()["weight"].norm()


def by_name(module: Any, args: Any, output: Tensor) -> Tensor:
    return output / getattr(module, NAME).norm()


def by_forward(module: Any, args: Any, output: Tensor) -> Tensor:
    return output + module.forward(args[0] * 0.5)


def by_variables(module: Any, args: Any, output: Tensor) -> Tensor:
    return output / vars(module)["_parameters"]["weight"].norm()


def by_default(module: Any, args: Any, output: Tensor, scale: Any = norm) -> Tensor:
    return scale(module, output)


@torch.no_grad()
def decorated(module: Any, args: Any, output: Tensor) -> Tensor:
    return norm(module, output)


def passed_on(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


class ByMethod:
    def hook(self, module: Any, args: Any, output: Tensor) -> Tensor:
        return self.scaled(module, output)

    def scaled(self, module: Any, output: Tensor) -> Tensor:
        return norm(module, output)

    def __call__(self, module: Any, args: Any, output: Tensor) -> Tensor:
        return self.scaled(module, output)


class Nested:
    def __init__(self) -> None:
        self.inner = ByMethod()
        self.table = {"scale": norm}

    def by_part(self, module: Any, args: Any, output: Tensor) -> Tensor:
        return self.inner.scaled(module, output)

    def by_table(self, module: Any, args: Any, output: Tensor) -> Tensor:
        return self.table["scale"](module, output)


def with_scale(scale: Any, module: Any, args: Any, output: Tensor) -> Tensor:
    return scale(module, output)


READING: tuple[Callable[..., Any], ...] = (
    *(by_helper, by_parameters, by_state_dict, by_name, by_forward, by_variables, by_default, decorated),
    *(passed_on(lambda module, args, output: norm(module, output)), lambda module, args, output: norm(module, output)),
    *(ByMethod().hook, ByMethod(), Nested().by_part, Nested().by_table, functools.partial(with_scale, norm)),
)


@pytest.mark.parametrize("hook", READING)
def test_a_hook_that_reads_the_weight_is_refused(hook: Callable[..., Any]) -> None:
    assert_refused(
        changed(lambda layer: layer.register_forward_hook(hook)), "'0' .*a hook that reads its weight", NAMED
    )


def test_a_module_that_the_hook_knows_otherwise_is_its_own_too() -> None:
    model = network()
    layer = model[0]  # type: ignore[index]
    layer.register_forward_hook(lambda _, args, output: norm(layer, output))
    assert_refused(model, "'0' .*a hook that reads its weight", NAMED)


class Recorder:
    """As those of profilers, trackers and training modules are."""

    def __init__(self, layer: nn.Module) -> None:
        self.names, self.seen = {layer: "first"}, {}

    def record(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.seen[self.name(module)] = self.summary(output.detach())

    def name(self, module: nn.Module) -> str:
        return f"{self.names[module]} {type(module).__name__} {getattr(module, 'training', None)}"

    def summary(self, output: Tensor) -> float:
        return output.norm(dim=-1).mean().item()

    def to_device(self, module: nn.Module, args: Any) -> Any:
        return (args[0].to(next(module.parameters()).device),)

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.record(module, args, output)


def test_hooks_that_record_are_not_refused() -> None:
    layer = nn.Linear(WIDTH, WIDTH)
    recorder = Recorder(layer)
    for hook in (recorder, recorder.record, passed_on(recorder.record), torch.no_grad()(recorder.record)):
        layer.register_forward_hook(hook)
    layer.register_forward_hook(lambda module, args, output: print(module, output.shape, module.bias is None))
    layer.register_forward_pre_hook(recorder.to_device)
    assert not hook_reads_weight(layer)


def test_a_pruned_factor_leaves_nothing_on_the_merged_layer() -> None:
    model, x = network(), torch.randn(4, WIDTH)
    inject_adapter(model, PeraConfig(2, target_modules=["0"]))
    randomise_adapter(model)
    prune.l1_unstructured(model[0], "pera_A", 0.5)  # type: ignore[index]
    y = model(x)
    torch.testing.assert_close(merge_adapter(model)(x), y, rtol=1e-4, atol=1e-5)
    assert not model[0]._forward_pre_hooks  # type: ignore[index]
