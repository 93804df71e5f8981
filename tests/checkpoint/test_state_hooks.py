from __future__ import annotations

import copy

import pytest
import torch
from lightning.pytorch.strategies.deepspeed import remove_module_hooks
from torch import nn

from pera_lightning import PeraConfig, adapter_state_dict, inject_adapter, remove_adapter
from pera_lightning.checkpoint import install_state_hooks
from pera_lightning.errors import CheckpointError
from tests.support.models import randomise_adapter


def make_model(rank: int = 2, hooks: bool = True) -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3), nn.Linear(3, 2)).eval()
    inject_adapter(model, PeraConfig(rank))
    randomise_adapter(model)
    if hooks:
        install_state_hooks(model)
    return model


def test_state_dict_is_the_adapter() -> None:
    model = make_model()
    assert model.state_dict().keys() == adapter_state_dict(model).keys()
    install_state_hooks(model)
    assert len(model._state_dict_hooks) == 1


def test_hooks_that_somebody_took_away_come_back() -> None:
    model = make_model()
    remove_module_hooks(model)
    assert "0.base_layer.weight" in model.state_dict()
    install_state_hooks(model)
    assert model.state_dict().keys() == adapter_state_dict(model).keys()
    with pytest.raises(CheckpointError, match="the rank is 3 there and 2 here"):
        model.load_state_dict(make_model(rank=3).state_dict())
    same = copy.deepcopy(model)
    install_state_hooks(same)
    assert same.state_dict().keys() == model.state_dict().keys()
    assert len(same._state_dict_hooks) == len(model._state_dict_hooks) == 1


def test_as_a_part_of_another_module_it_is_saved_whole_and_loaded_strictly() -> None:
    outer = nn.ModuleDict({"inner": make_model(), "other": nn.Linear(2, 2)})
    state = outer.state_dict()
    assert {"inner.0.pera_A", "inner.0.base_layer.weight", "other.weight"} <= state.keys()
    outer.load_state_dict(state)
    with pytest.raises(RuntimeError, match="Missing key"):
        outer.load_state_dict({key: value for key, value in state.items() if not key.startswith("other")})
    # Loading as a part must not change how it loads by itself afterwards.
    outer["inner"].load_state_dict(make_model().state_dict())


def test_strict_loading() -> None:
    model, other = make_model(), make_model()
    result = other.load_state_dict(model.state_dict(), strict=True)
    assert not result.missing_keys
    assert torch.equal(other[0].pera_B, model[0].pera_B)


def test_loading_names_what_differs() -> None:
    state = make_model().state_dict()
    model = make_model()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError, match="the rank is 3 there and 2 here"):
        model.load_state_dict(make_model(rank=3).state_dict())
    with pytest.raises(CheckpointError, match=r"1 tensors are missing, e.g. '0.pera_A'"):
        model.load_state_dict({key: value for key, value in state.items() if key != "0.pera_A"})
    with pytest.raises(CheckpointError, match="no place in this model"):
        model.load_state_dict({**state, "9.pera_A": torch.zeros(1)})
    plain = nn.Sequential(nn.Linear(4, 6)).state_dict()
    with pytest.raises(CheckpointError, match="plain model"):
        model.load_state_dict(plain)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_layers_that_differ_are_not_taken_for_a_plain_model() -> None:
    other = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 6))
    inject_adapter(other, PeraConfig(2, target_modules=["1"]))
    install_state_hooks(other)
    with pytest.raises(CheckpointError, match=r"1 there, e\.g\. '1'; 2 here, e\.g\. '0'") as caught:
        make_model().load_state_dict(other.state_dict())
    assert "plain model" not in str(caught.value)
    assert "use the options of the run that wrote it" in str(caught.value)
    assert "or its model: no layer is adapted in both" in str(caught.value)


def test_a_model_of_other_sizes_is_not_cured_by_options() -> None:
    wide = nn.Sequential(nn.Linear(9, 6), nn.Linear(6, 6), nn.Linear(6, 3))
    inject_adapter(wide, PeraConfig(2, target_modules=["0", "2"]))
    install_state_hooks(wide)
    with pytest.raises(CheckpointError, match=r"differ in shape(.|\n)*load the model of the run that wrote it"):
        make_model().load_state_dict(wide.state_dict())


def test_a_full_state_dict_loads_too() -> None:
    full = make_model(hooks=False)
    model = make_model()
    model.load_state_dict(full.state_dict())
    assert torch.equal(model[0].base_layer.weight, full[0].base_layer.weight)
    assert torch.equal(model[0].pera_B, full[0].pera_B)


def test_hooks_sleep_without_adapters() -> None:
    model = make_model()
    remove_adapter(model)
    assert "0.weight" in model.state_dict()
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({})
