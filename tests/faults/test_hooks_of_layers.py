"""Hooks set on a layer before the fit saw and changed the base's output alone: merged differed from unmerged."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pera_lightning import (
    PeraConfig,
    adapter_disabled,
    inject_adapter,
    merge_adapter,
    quantize_model,
    remove_adapter,
)
from pera_lightning.injection import adapted_layers, attach_adapter, detach_adapter
from tests.support.models import randomise_adapter, tiny_llama, token_ids
from tests.support.reference import reference_delta_weight

WIDTH = 8
CONFIG = PeraConfig(2, 2, target_modules=["0", "2"])


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 2))


def double(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return 2 * output


class Shift:
    """A hook that is an object, with keyword arguments."""

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        return output + 1


def halve_input(module: nn.Module, args: tuple[Tensor]) -> Tensor:
    return args[0] / 2


def shift_input(module: nn.Module, args: tuple[Tensor], kwargs: Any) -> Any:
    return (args[0] + 1,), kwargs


CHANGING: tuple[Callable[[nn.Module], RemovableHandle], ...] = (
    lambda layer: layer.register_forward_hook(double),
    lambda layer: layer.register_forward_hook(Shift(), with_kwargs=True),
    lambda layer: layer.register_forward_hook(double, always_call=True),
    lambda layer: layer.register_forward_pre_hook(halve_input),
    lambda layer: layer.register_forward_pre_hook(shift_input, with_kwargs=True),
)


def by_hand(adapted: nn.Module, *changes: Callable[[nn.Module], object]) -> nn.Sequential:
    """The plain network with the changes of weights, entry by entry, and the hooks."""
    model = network()
    for name, layer in adapted_layers(adapted):
        delta = reference_delta_weight(layer.pera_A, layer.pera_B, layer.pera_h, 2, "full", layer.scaling)
        model[int(name)].weight.data += delta
    for change in changes:
        change(model[0])
    return model


@pytest.mark.parametrize("register", CHANGING)
def test_a_hook_changes_what_the_adapted_layer_gives(register: Callable[[nn.Module], RemovableHandle]) -> None:
    x, model = torch.randn(4, WIDTH), network()
    handle = register(model[0])
    before = model(x)
    inject_adapter(model, CONFIG)
    torch.testing.assert_close(model(x), before)
    randomise_adapter(model)
    y = model(x)
    torch.testing.assert_close(y, by_hand(model, register)(x), rtol=1e-4, atol=1e-5)
    with adapter_disabled(model):
        torch.testing.assert_close(model(x), before)
    without = by_hand(model)(x)
    merged = copy.deepcopy(model)
    torch.testing.assert_close(merge_adapter(merged)(x), y, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pickle.loads(pickle.dumps(model[2]))(x), model[2](x))
    handle.remove()
    torch.testing.assert_close(model(x), without, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("register", CHANGING)
def test_a_compiled_model_runs_it_once(register: Callable[[nn.Module], RemovableHandle]) -> None:
    torch._dynamo.reset()
    x, model = torch.randn(4, WIDTH), network()
    register(model[0])
    model[0].compile(backend="eager")
    model(x)
    inject_adapter(model, CONFIG)
    randomise_adapter(model)
    expected = by_hand(model, register)(x)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        torch.compile(model, backend="aot_eager", fullgraph=True)(x), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("take_out", [merge_adapter, remove_adapter])
def test_handles_stay_good_and_nothing_is_left_behind(take_out: Callable[[nn.Module], nn.Module]) -> None:
    x, model = torch.randn(4, WIDTH), network()
    handles = [register(model[0]) for register in CHANGING]
    layer, kept = model[0], {name: dict(value) for name, value in vars(model[0]).items() if name.endswith("_hooks")}
    inject_adapter(model, CONFIG)
    added = model[0].register_forward_hook(lambda module, args, output: output - 1)
    take_out(model)
    assert model[0] is layer
    assert len(layer._forward_hooks) == 4
    added.remove()
    assert {name: dict(vars(layer)[name]) for name in kept} == kept
    for handle in handles:
        handle.remove()
    assert not layer._forward_hooks
    assert not layer._forward_pre_hooks
    assert not layer._forward_hooks_with_kwargs
    torch.testing.assert_close(layer(x), layer.forward(x))


def test_a_hook_may_ask_for_the_dtype_of_the_weight() -> None:
    model = network()
    model[0].register_forward_hook(lambda module, args, output: output.to(module.weight.dtype))
    assert inject_adapter(model, CONFIG).adapted == ("0", "2")


def test_a_recording_hook_sees_the_adapted_output_and_its_own_layer() -> None:
    x, model, seen = torch.randn(4, WIDTH), network(), {}
    names = {layer: name for name, layer in model.named_children()}
    model[0].mark = "first"  # type: ignore[assignment]
    for layer in names:
        layer.register_forward_hook(lambda module, args, output: seen.update({names[module]: output.detach()}))
    model[0].register_forward_hook(lambda module, args, output: seen.update(mark=module.mark))
    inject_adapter(model, CONFIG)
    randomise_adapter(model)
    y = model(x)
    expected = by_hand(model)
    torch.testing.assert_close(seen["0"], expected[0](x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen["4"], y)
    assert seen["mark"] == "first"


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.filterwarnings("ignore:Using a non-full backward hook:FutureWarning")
def test_backward_hooks_see_the_gradients_of_the_adapted_layer(legacy: bool) -> None:
    seen: list[tuple[Tensor, ...]] = []

    def hooked(model: nn.Sequential) -> nn.Sequential:
        if legacy:
            model[2].register_backward_hook(lambda module, grad_in, grad_out: seen.append(grad_out))
        else:
            model[2].register_full_backward_pre_hook(lambda module, grad_out: (2 * grad_out[0],))
            model[2].register_full_backward_hook(lambda module, grad_in, grad_out: seen.append((*grad_in, *grad_out)))
        return model

    x, model = torch.randn(4, WIDTH, requires_grad=True), hooked(network())
    inject_adapter(model, CONFIG)
    randomise_adapter(model)
    model(x).square().sum().backward()
    gradient, x.grad = x.grad, None
    other_model = hooked(by_hand(model))
    other_model(x).square().sum().backward()
    ours, theirs = seen
    assert len(ours) == len(theirs) > 0
    for one, other in zip((gradient, *ours), (x.grad, *theirs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert remove_adapter(model)[2]._is_full_backward_hook is not legacy


def test_hooks_of_state_dicts_stay_with_the_tensors() -> None:
    model, keys = network(), []
    model[0].register_state_dict_post_hook(lambda module, state, prefix, metadata: keys.append((type(module), prefix)))
    inject_adapter(model, CONFIG)
    model.state_dict()
    assert keys == [(nn.Linear, "0.base_layer.")]


def test_hooks_that_place_tensors_stay_with_the_tensors() -> None:
    model, ours = network(), []

    def gather(module: nn.Module, *args: Any) -> None:
        ours.append(type(module).__name__)

    gather.__module__ = "torch.distributed.fsdp"
    layer = model[0]
    handles = [layer.register_forward_pre_hook(gather), layer.register_full_backward_hook(gather)]
    layer.register_full_backward_hook(lambda module, grad_in, grad_out: None)
    inject_adapter(model, CONFIG)
    model(torch.ones(1, WIDTH, requires_grad=True)).sum().backward()
    assert ours == ["Linear", "Linear"]
    assert len(layer._backward_hooks) == len(model[0]._backward_hooks) == 1
    merge_adapter(model)
    handles[0].remove()
    assert len(layer._backward_hooks) == 2
    assert layer._is_full_backward_hook


def test_an_adapter_that_is_put_in_again_takes_them_again() -> None:
    x, model = torch.randn(4, WIDTH), network()
    model[0].register_forward_hook(double)
    before = model(x)
    inject_adapter(model, CONFIG)
    randomise_adapter(model)
    y = model(x)
    adapter = detach_adapter(model)
    torch.testing.assert_close(model(x), before)
    attach_adapter(model, adapter)
    torch.testing.assert_close(model(x), y)


def test_embeddings_and_heads_of_trained_tokens_are_hooked_as_a_whole() -> None:
    model, ids, seen = tiny_llama(), token_ids(), {}
    table, head = model.model.embed_tokens, model.lm_head
    for name, layer in {"table": table, "head": head}.items():
        layer.register_forward_hook(lambda module, args, output, name=name: seen.update({name: output.clone()}))
    inject_adapter(model, PeraConfig(2, trainable_tokens={"embed_tokens": [5], "lm_head": [5]}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("delta"):
                parameter.fill_(0.5)
    ids[0, 0] = 5
    logits = model(ids).logits
    torch.testing.assert_close(seen["table"][0, 0], table.weight[5] + 0.5)
    torch.testing.assert_close(seen["head"], logits)


def test_quantised_layers_keep_their_hooks() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 2))
    for layer in model[:2]:
        layer.register_forward_hook(double)
    x, plain = torch.randn(3, 64), copy.deepcopy(model)
    quantize_model(model, "nf4")
    inject_adapter(model, PeraConfig(2, target_modules=["0"]))
    assert (model(x) - plain(x)).norm() / plain(x).norm() < 0.5
    randomise_adapter(model)
    y = model(x)
    torch.testing.assert_close(merge_adapter(model)(x), y, rtol=1e-3, atol=1e-3)
