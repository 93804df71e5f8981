from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from pera_lightning import PeraConfig
from pera_lightning.errors import ConfigError


def test_round_trip_through_json() -> None:
    config = PeraConfig(
        4,
        3,
        terms="cross",
        alpha=2.5,
        dropout=0.1,
        coefficient_scale="auto",
        target_modules=["q", "v"],
        exclude_modules=("x",),
        modules_to_save=["score"],
        rank_pattern={"q": 2},
        alpha_pattern={"v": 1.0},
    )
    assert PeraConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert PeraConfig.from_dict(PeraConfig().to_dict()) == PeraConfig()


def test_is_frozen_and_keyword_only_after_order() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PeraConfig().rank = 2
    with pytest.raises(TypeError):
        PeraConfig(8, 2, "full")


@pytest.mark.parametrize(
    ("options", "scaling"),
    [
        ({}, 1.0),
        ({"alpha": 4}, 0.5),
        ({"alpha": 16}, 2.0),
        ({"rank": 16, "alpha": 8, "use_rslora": True}, 2.0),
        ({"rank": 16, "use_rslora": True}, 4.0),
    ],
)
def test_scaling(options: dict[str, Any], scaling: float) -> None:
    assert PeraConfig(**options).scaling() == scaling


@pytest.mark.parametrize(
    "options",
    [
        {"rank": 0},
        {"rank": -3},
        {"rank": 2.0},
        {"rank": True},
        {"rank": "8"},
        {"order": 0},
        {"order": 1.5},
        {"terms": "cubes"},
        {"alpha": 0},
        {"alpha": -1},
        {"alpha": float("nan")},
        {"alpha": "8"},
        {"use_rslora": 1},
        {"dropout": 1},
        {"dropout": 1.0},
        {"dropout": -0.1},
        {"dropout": float("nan")},
        {"coefficient_scale": 0},
        {"coefficient_scale": "large"},
        {"coefficient_scale": float("inf")},
        {"target_modules": []},
        {"target_modules": ""},
        {"target_modules": ["q", 3]},
        {"target_modules": 3},
        {"target_modules": "(unclosed"},
        {"exclude_modules": [""]},
        {"modules_to_save": "score"},
        {"rank_pattern": {"q": 0}},
        {"rank_pattern": ["q"]},
        {"alpha_pattern": {"(": 2}},
        {"terms": "cross", "rank": 1},
        {"terms": "cross", "rank_pattern": {"q": 1}},
    ],
    ids=str,
)
def test_wrong_values_say_got_expected_fix(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        PeraConfig(**options)
    assert all(word in str(caught.value) for word in ("got:", "expected:", "fix:"))


def test_unknown_option_names_the_near_one() -> None:
    with pytest.raises(ConfigError, match="did you mean 'target_modules'"):
        PeraConfig.from_dict({"target_module": ["q"]})
