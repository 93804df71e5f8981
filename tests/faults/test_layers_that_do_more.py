"""Adapters on layers that do more than multiply (scale, mask, normalise): merged gave something else than unmerged."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, skip_init, spectral_norm, weight_norm

from pera_lightning import (
    PeraConfig,
    PeraLinear,
    inject_adapter,
    load_adapter,
    merge_adapter,
    quantize_model,
    remove_adapter,
    save_adapter,
)
from pera_lightning.base_layers import beyond_multiplying
from pera_lightning.errors import AdapterFileError, TargetError
from pera_lightning.injection import adapted_layers
from tests.support.adapted_network import NAMED, NO_HEAD, assert_refused, assert_right, changed, network
from tests.support.layer_kinds import BY_SIZE, MORE, PLAIN, WIDTH, OfItsSize, Scaled
from tests.support.models import randomise_adapter
from tests.support.module_state import Before
from tests.support.reference import reference_delta_weight


@pytest.mark.parametrize("kind", MORE)
def test_a_class_that_does_more_is_refused_by_name(kind: type[nn.Module], tmp_path: Path) -> None:
    assert_refused(network(kind), rf"'0' of kind {kind.__name__}, which", NAMED)
    with pytest.raises(TargetError, match=rf"{kind.__name__}, which"):
        PeraLinear(kind(4, 6), PeraConfig(2))
    plain = network()
    inject_adapter(plain, NAMED)
    save_adapter(plain, tmp_path)
    with pytest.raises(AdapterFileError, match=rf"'0' of kind {kind.__name__}, which"):
        load_adapter(network(kind), tmp_path, allow_other_base=True)


@pytest.mark.parametrize("kind", MORE)
def test_all_linear_leaves_it_alone_and_names_it(kind: type[nn.Module]) -> None:
    model = network(kind)
    report = inject_adapter(model, NO_HEAD)
    assert report.adapted == ("2",)
    assert list(report.not_plain) == ["0"]
    assert f"left alone: 0 (each {report.not_plain['0']})" in str(report)
    assert type(model[0]) is kind  # type: ignore[index]


@pytest.mark.parametrize("kind", BY_SIZE)
def test_a_class_that_does_more_in_its_own_size_is_refused(kind: type[nn.Module]) -> None:
    assert_refused(network(kind), rf"'0' of kind {kind.__name__}, which", NAMED)


class Doubled(Tensor):
    """A tensor whose products are twice those of its values."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = super().__torch_function__(func, types, args, kwargs or {})
        return 2 * result if func is F.linear else result


def test_a_weight_of_a_class_of_its_own_and_a_sparse_one_are_refused() -> None:
    for weight in (torch.eye(WIDTH).as_subclass(Doubled), torch.eye(WIDTH).to_sparse()):
        model = network()
        model[0]._parameters["weight"] = nn.Parameter(weight, requires_grad=False)  # type: ignore[index]
        with pytest.raises(TargetError, match="'0' of kind"):
            inject_adapter(model, NAMED)


def test_excluded_or_saved_whole_it_is_not_named() -> None:
    assert inject_adapter(network(Scaled), PeraConfig(2, exclude_modules=["0"])).not_plain == {}
    assert inject_adapter(network(Scaled), PeraConfig(2, modules_to_save=["0"])).not_plain == {}


def test_nothing_else_to_adapt_says_why() -> None:
    assert_refused(nn.Sequential(Scaled(4, 4), nn.Linear(4, 2)), "does more than multiply .*'0' does more", NO_HEAD)


@pytest.mark.parametrize("kind", PLAIN)
def test_a_class_that_only_adds_is_adapted(kind: type[nn.Module]) -> None:
    assert_right(partial(network, kind))
    with torch.device("meta"):
        layer = kind(WIDTH, 6)
    assert PeraLinear(layer, PeraConfig(2)).out_features == 6


def test_trying_a_layer_leaves_no_trace() -> None:
    layer = OfItsSize(WIDTH, WIDTH)
    before, state = Before.of(layer), torch.get_rng_state()
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode(), torch.device("meta"):
        assert beyond_multiplying(layer) is None
    before.assert_restored(layer)
    assert (layer.calls, layer.history) == (0, [])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_forward_replaced_in_the_class_itself_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    own = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", wraps(own)(lambda layer, x: 2 * own(layer, x)))
    assert_refused(network(), "'0' of kind Linear, which does more", NAMED)
    monkeypatch.setattr(nn.Linear, "forward", lambda layer, x: own(layer, x))
    assert_right(network)


def test_a_hook_is_not_called_by_trying() -> None:
    layer, calls = OfItsSize(WIDTH, WIDTH), []
    layer.register_forward_hook(lambda *args: calls.append(1))
    assert beyond_multiplying(layer) is None
    assert not calls


COMPUTED = (
    parametrizations.weight_norm,
    parametrizations.spectral_norm,
    parametrizations.orthogonal,
    weight_norm,
    spectral_norm,
    partial(prune.l1_unstructured, name="weight", amount=0.5),
)


@pytest.mark.parametrize("compute", COMPUTED)
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_a_computed_weight_is_refused(compute: Callable[[nn.Linear], object]) -> None:
    assert_refused(
        changed(compute), "computes its weight at each call[\\s\\S]*'0' of kind .*whose weight is no parameter"
    )


def test_a_pruned_bias_and_a_skipped_start_are_right() -> None:
    assert_right(lambda: changed(lambda layer: prune.l1_unstructured(layer, "bias", 0.5)))

    def skipped() -> nn.Module:
        model = network()
        model[0] = skip_init(nn.Linear, WIDTH, WIDTH)  # type: ignore[operator]
        model[0].load_state_dict(network()[0].state_dict())  # type: ignore[index]
        return model

    assert_right(skipped)


class ReadsWeights(nn.Module):
    """It reads weight and bias in place of calling the layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.linear(x, self.first.weight, self.first.bias))


class KeepsElsewhere(nn.Module):
    """It calls its layers from where torch does not see them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third, self.head = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.steps = [self.first, {"second": (torch.tanh, self.second)}]
        self.last = self.third.forward

    def forward(self, x: Tensor) -> Tensor:
        tanh, second = self.steps[1]["second"]  # type: ignore[index]
        return self.head(self.last(second(tanh(self.steps[0](x)))))  # type: ignore[operator]


@pytest.mark.parametrize("kind", [ReadsWeights, KeepsElsewhere])
def test_weights_and_layers_that_are_reached_otherwise(kind: type[nn.Module]) -> None:
    x, model, by_hand = torch.randn(4, WIDTH), kind(), kind()
    before = model(x)
    report = inject_adapter(model, NO_HEAD)
    randomise_adapter(model)
    for name, layer in adapted_layers(model):
        delta = reference_delta_weight(layer.pera_A, layer.pera_B, layer.pera_h, 2, "full", layer.scaling)
        by_hand.get_submodule(name).weight.data += delta  # type: ignore[union-attr, operator]
    y = model(x)
    torch.testing.assert_close(y, by_hand(x), rtol=1e-4, atol=1e-5)
    y.square().sum().backward()
    assert all(layer.pera_A.grad.any() for _, layer in adapted_layers(model))  # type: ignore[union-attr]
    assert len(report.adapted) == len(list(by_hand.children())) - 1
    merged = merge_adapter(copy.deepcopy(model))
    torch.testing.assert_close(merged(x), y, rtol=1e-4, atol=1e-5)
    remove_adapter(model)
    torch.testing.assert_close(model(x), before)


def test_trained_tokens_and_quantisation_judge_as_adapters_do() -> None:
    with pytest.raises(TargetError, match="'0' of kind Scaled"):
        inject_adapter(network(Scaled), PeraConfig(2, target_modules=["2"], trainable_tokens={"0": [1]}))
    model = nn.Sequential(Scaled(64, 64), nn.Linear(64, 64), nn.Linear(64, 2))
    assert quantize_model(model, "nf4").left == ("0", "2")
