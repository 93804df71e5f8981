"""A small network, and what is to hold of it with adapters on its first two layers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from pera_lightning import PeraConfig, inject_adapter, merge_adapter
from pera_lightning.errors import PeraError, TargetError
from pera_lightning.injection import adapted_layers
from tests.support.layer_kinds import WIDTH
from tests.support.models import randomise_adapter
from tests.support.module_state import Before
from tests.support.reference import reference_delta_weight

NAMED = PeraConfig(2, 2, target_modules=["0", "2"])
NO_HEAD = PeraConfig(2, 2)


def network(kind: Callable[[int, int], nn.Module] = nn.Linear) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(kind(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 2)).eval()


def changed(change: Callable[[nn.Linear], object]) -> nn.Module:
    """A network of which something was done to the first layer."""
    model = network()
    change(model[0])  # type: ignore[operator, index]
    return model


def assert_refused(model: nn.Module, match: str, *configs: PeraConfig, error: type[PeraError] = TargetError) -> None:
    before = Before.of(model)
    for config in configs or (NAMED, NO_HEAD):
        with pytest.raises(error, match=match):
            inject_adapter(model, config)
        before.assert_restored(model)


def assert_right(make: Callable[[], nn.Module]) -> None:
    """Adapted as the base with its weight changed by hand; merged the same; every factor gets a gradient."""
    model, by_hand = make(), make()
    x, before = torch.randn(4, WIDTH), model(torch.ones(1, WIDTH))
    report = inject_adapter(model, NAMED)
    assert report.adapted == ("0", "2")
    torch.testing.assert_close(model(torch.ones(1, WIDTH)), before)
    randomise_adapter(model)
    for name, layer in adapted_layers(model):
        delta = reference_delta_weight(layer.pera_A, layer.pera_B, layer.pera_h, 2, "full", layer.scaling)
        stored = by_hand.get_submodule(name).weight.data  # type: ignore[union-attr]
        stored += delta.T if isinstance(layer.base_layer, Conv1D) else delta
    y = model(x)
    torch.testing.assert_close(y, by_hand(x), rtol=1e-4, atol=1e-5)
    y.square().sum().backward()
    assert all(value.grad.any() for _, layer in adapted_layers(model) for value in layer.adapter().values())  # type: ignore[union-attr]
    torch.testing.assert_close(merge_adapter(model)(x), y, rtol=1e-4, atol=1e-5)
