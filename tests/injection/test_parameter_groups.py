from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pera_lightning import PeraConfig, inject_adapter, parameter_groups
from pera_lightning.errors import TrainingError
from tests.support.models import tiny_llama

RATES = {"learning_rate": 0.1, "b_lr_factor": 4.0, "h_lr_factor": 30.0, "weight_decay": 0.01}


def names_in(groups: list[dict[str, Any]], model: nn.Module) -> dict[str, set[str]]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {group["name"]: {names[parameter] for parameter in group["params"]} for group in groups}


def test_groups_of_an_adapted_model() -> None:
    model = tiny_llama()
    config = PeraConfig(rank=2, target_modules=["q_proj"], modules_to_save=["lm_head", "norm"])
    inject_adapter(model, config)
    groups = parameter_groups(model.named_parameters(), **RATES)
    settings = {group["name"]: (group["lr"], group["weight_decay"]) for group in groups}
    assert settings == {
        "pera_A": (0.1, 0.01),
        "pera_B": (0.4, 0.01),
        "pera_h": (3.0, 0.0),
        "other": (0.1, 0.01),
        "other_no_decay": (0.1, 0.0),
    }
    members = names_in(groups, model)
    layers = [f"model.layers.{i}.self_attn.q_proj" for i in range(2)]
    for factor in ("pera_A", "pera_B", "pera_h"):
        assert members[factor] == {f"{layer}.{factor}" for layer in layers}
    assert {name.split(".")[-1] for name in members["other"]} == {"weight"}
    assert len(members["other"]) == len(members["other_no_decay"]) == 1
    torch.optim.AdamW(groups)


def test_only_a_parameters_own_name_makes_it_a_factor() -> None:
    model = nn.ModuleDict({"pera_A": nn.Linear(3, 4), "to_pera_B": nn.LayerNorm(4)})
    members = names_in(parameter_groups(model.named_parameters(), **RATES), model)
    assert members == {
        "other": {"pera_A.weight"},
        "other_no_decay": {"pera_A.bias", "to_pera_B.weight", "to_pera_B.bias"},
    }


def test_frozen_parameters_and_empty_groups_are_left_out() -> None:
    model = tiny_llama()
    inject_adapter(model, PeraConfig(rank=2, order=1))
    groups = parameter_groups(model.named_parameters(), **RATES)
    assert [group["name"] for group in groups] == ["pera_A", "pera_B"]


def test_nothing_to_train() -> None:
    model = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(TrainingError, match="add PeraCallback"):
        parameter_groups(model.named_parameters(), **RATES)
