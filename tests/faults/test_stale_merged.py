"""A merged layer that was given other values by `load_state_dict` went on answering with those that were merged."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pera_lightning import PeraConfig, inject_adapter
from pera_lightning.errors import InjectionError
from pera_lightning.injection import adapter_layers
from tests.support.models import randomise_adapter

IDS = torch.tensor([[1, 4, 5], [2, 2, 0]])


def adapted() -> nn.Sequential:
    model = nn.Sequential(nn.Embedding(8, 6), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 8)).eval()
    inject_adapter(model, PeraConfig(2, target_modules=["0", "1"]))
    randomise_adapter(model)
    return model


def with_token_rows() -> nn.Sequential:
    model = nn.Sequential(nn.Embedding(8, 6), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 8)).eval()
    inject_adapter(model, PeraConfig(2, target_modules=["1"], trainable_tokens={"0": [1, 4]}))
    randomise_adapter(model)
    return model


def merge(model: nn.Module, merged: bool = True) -> None:
    for _, layer in adapter_layers(model):
        layer.merge() if merged else layer.unmerge()


def another(model: nn.Module, part: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """The same model with other values in a part of it, and what is to be loaded for that."""
    other = copy.deepcopy(model)
    changed: dict[str, Tensor] = {}
    for name, value in other.named_parameters():
        if part in name:
            value.data.normal_()
            changed[name] = value.detach().clone()
    assert changed
    return other, changed


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("make", [adapted, with_token_rows])
@pytest.mark.parametrize("part", ["pera_A", "pera_B", "pera_h", "delta", "1.base_layer.weight"])
def test_refused_before_the_layer_changes(part: str, make: Any, assign: bool) -> None:
    model = make()
    if part == "delta" and make is adapted:
        return
    other, changed = another(model, part)
    merge(model)
    with torch.no_grad():
        before = model(IDS)
        with pytest.raises(InjectionError, match=r"unmerge\(\)") as error:
            model.load_state_dict(changed, strict=False, assign=assign)
        assert part in str(error.value)
        assert torch.equal(model(IDS), before)
        # The cure.
        merge(model, False)
        model.load_state_dict(changed, strict=False, assign=assign)
        merge(model)
        torch.testing.assert_close(model(IDS), other(IDS), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [adapted, with_token_rows])
def test_the_same_values_are_all_right(make: Any) -> None:
    """As of a copy that was written while merged."""
    model = make()
    merge(model)
    state = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        before = model(IDS)
        model.load_state_dict(state)
        assert torch.equal(model(IDS), before)
    merge(model, False)
    model.load_state_dict(state, strict=False)


def test_shapes_that_do_not_fit_are_torchs_own_error() -> None:
    model = adapted()
    merge(model)
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_state_dict({"1.pera_A": torch.zeros(3, 6)}, strict=False)
