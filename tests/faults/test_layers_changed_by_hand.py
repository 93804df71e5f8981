"""Adapters on layers that something was done to (a forward replaced, hooks, other wrappers): wrong, or never merged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate.hooks import AlignDevicesHook, ModelHook, SequentialHook, add_hook_to_module
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations

from pera_lightning import (
    PeraConfig,
    inject_adapter,
    merge_adapter,
)
from pera_lightning.errors import InjectionError, TargetError
from tests.support.adapted_network import NAMED, NO_HEAD, assert_refused, assert_right, changed, network
from tests.support.layer_kinds import WIDTH
from tests.support.models import randomise_adapter


def replace_forward(layer: nn.Linear) -> None:
    own = layer.forward

    @wraps(own)
    def doubled(x: Tensor) -> Tensor:
        return 2 * own(x)

    layer.forward = doubled  # type: ignore[method-assign]


class Doubling(ModelHook):
    def post_forward(self, module: nn.Module, output: Tensor) -> Tensor:
        return 2 * output


class WithoutGradient(AlignDevicesHook):
    no_grad = True


class ReadsByName:
    def __call__(self, module: nn.Module, args: tuple[Tensor]) -> Tensor:
        return args[0] * getattr(module, "weight", args[0]).mean()


def placed(*hooks: ModelHook) -> Callable[[nn.Linear], object]:
    return lambda layer: [add_hook_to_module(layer, hook, append=True) for hook in hooks]


AT = AlignDevicesHook("cpu", io_same_device=True)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (replace_forward, "forward that was replaced"),
        (lambda layer: (placed(AT)(layer), replace_forward(layer)), "forward that was replaced"),
        (lambda layer: (replace_forward(layer), placed(AT)(layer)), "forward that was replaced"),
        (placed(Doubling()), r"accelerate \(Doubling\)"),
        (placed(AT, Doubling()), r"accelerate \(SequentialHook\)"),
        (placed(WithoutGradient("cpu")), r"accelerate \(WithoutGradient\)"),
        (
            lambda layer: layer.register_forward_hook(lambda part, args, output: args[0] @ part.weight.T),
            "reads its weight",
        ),
        (lambda layer: layer.register_forward_pre_hook(ReadsByName()), "reads its weight"),
    ],
)
def test_what_was_done_to_one_layer_is_refused(change: Callable[[nn.Linear], object], match: str) -> None:
    assert_refused(changed(change), f"'0' of kind Linear, which has .*{match}")


def test_hooks_of_accelerate_that_only_place_are_right() -> None:
    assert_right(lambda: changed(placed(AT)))
    assert_right(lambda: changed(placed(SequentialHook(AT, AlignDevicesHook("cpu")))))


def test_an_off_loaded_layer_is_refused() -> None:
    with pytest.raises(TargetError, match="'0' of kind Linear, which has no weight between its calls"):
        inject_adapter(changed(placed(AlignDevicesHook("cpu", offload=True))), NAMED)


def test_other_adapters_come_first() -> None:
    model = get_peft_model(network(), LoraConfig(target_modules=["0"], r=2))
    assert_refused(model, "'base_model.model.0.base_layer' in 'base_model.model.0'", NO_HEAD)
    inject_adapter(model, PeraConfig(2, target_modules=["2"]))


@contextmanager
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def test_a_model_that_processes_share_already_is_refused() -> None:
    with one_process():
        assert_refused(DistributedDataParallel(network()), "would train the adapter by itself", error=InjectionError)


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (
            lambda layer: layer.base_layer.register_forward_hook(lambda part, args, output: 2 * output),
            "on its base_layer",
        ),
        (lambda layer: layer.base_layer.register_forward_pre_hook(lambda part, args: args[0] * 2), "on its base_layer"),
        (lambda layer: replace_forward(layer.base_layer), "forward that was replaced"),
        (replace_forward, "forward that was replaced"),
        (lambda layer: parametrizations.weight_norm(layer.base_layer), "ParametrizedLinear"),
    ],
)
def test_what_is_done_after_the_injection_is_refused_by_the_merge(spoil: Callable[[Any], object], match: str) -> None:
    model, x = network(), torch.randn(4, WIDTH)
    inject_adapter(model, NAMED)
    randomise_adapter(model)
    spoil(model[2])  # type: ignore[index]
    y = model(x)
    with pytest.raises(InjectionError, match=match):
        merge_adapter(model)
    assert torch.equal(model(x), y)
    if match != "ParametrizedLinear":
        with pytest.raises(InjectionError, match="'2' over Linear"):
            merge_adapter(model)
