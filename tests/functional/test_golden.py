"""The golden cases: values and gradients of the equation in float64, computed with explicit loops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pera_lightning import PeraConfig, PeraLinear
from pera_lightning.families import FAMILIES
from pera_lightning.functional import delta_weight, expand, expanded_rank, monomials, pera_linear

CASES = json.loads((Path(__file__).parent.parent / "golden" / "pera_cases.json").read_text())
TOLERANCE = {"rtol": 0, "atol": 1e-12}


def case_id(case: dict[str, Any]) -> str:
    return case["name"]


def tensor(case: dict[str, Any], key: str) -> Tensor:
    return torch.tensor(case[key], dtype=torch.float64)


def options(case: dict[str, Any]) -> dict[str, Any]:
    return {key: case[key] for key in ("order", "terms", "scaling")}


def test_every_family_has_a_case() -> None:
    assert len(CASES) >= 11
    assert {case["terms"] for case in CASES} == set(FAMILIES)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_monomials(case: dict[str, Any]) -> None:
    arguments = (case["rank"], case["order"], case["terms"])
    assert [list(indices) for indices in monomials(*arguments)] == case["monomials"]
    assert expanded_rank(*arguments) == case["expanded_rank"]
    assert expand(tensor(case, "A"), 0, *arguments[1:]).shape[0] == case["expanded_rank"]


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_delta_weight(case: dict[str, Any]) -> None:
    weight = delta_weight(tensor(case, "A"), tensor(case, "B"), tensor(case, "h"), **options(case))
    torch.testing.assert_close(weight, tensor(case, "delta_weight"), **TOLERANCE)


@pytest.mark.parametrize("path", ["auto", "factored", "dense", "implicit"])
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_output_and_gradients(case: dict[str, Any], path: str) -> None:
    inputs = {name: tensor(case, name).requires_grad_() for name in ("x", "A", "B", "h")}
    base = nn.functional.linear(inputs["x"], tensor(case, "W0"), tensor(case, "bias") if case["bias"] else None)
    y = base + pera_linear(**inputs, **options(case), path=path)
    torch.testing.assert_close(y, tensor(case, "y"), **TOLERANCE)
    y.backward(tensor(case, "grad_output"))
    for name, value in inputs.items():
        if value.numel():
            torch.testing.assert_close(value.grad, tensor(case, f"grad_{name}"), **TOLERANCE)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_layer(case: dict[str, Any]) -> None:
    out_features, in_features = tensor(case, "W0").shape
    linear = nn.Linear(in_features, out_features, bias=case["bias"] is not None, dtype=torch.float64)
    config = PeraConfig(case["rank"], case["order"], terms=case["terms"], alpha=case["alpha"])
    layer = PeraLinear(linear, config)
    with torch.no_grad():
        linear.weight.copy_(tensor(case, "W0"))
        if case["bias"] is not None:
            linear.bias.copy_(tensor(case, "bias"))
        for name in ("A", "B", "h"):
            parameter = getattr(layer, f"pera_{name}")
            if parameter is not None:
                parameter.copy_(tensor(case, name))
    torch.testing.assert_close(layer(tensor(case, "x")), tensor(case, "y"), **TOLERANCE)
    torch.testing.assert_close(layer.delta_weight(), tensor(case, "delta_weight"), **TOLERANCE)
    layer.merge()
    torch.testing.assert_close(layer.eval()(tensor(case, "x")), tensor(case, "y"), **TOLERANCE)
