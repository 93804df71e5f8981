"""What spawned or forked processes train comes back to the process that called fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.processes import run_script


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("returned")
    run_script("tests.support.returning", folder)
    return torch.load(folder / "found.pt", weights_only=True)


@pytest.mark.parametrize("name", ["ddp_fork __init__", "ddp_fork configure_model", "ddp_notebook", "ddp_spawn"])
def test_main_process_holds_the_adapter(found: dict[str, dict[str, Any]], name: str) -> None:
    held, written = found[name]["held"], found[name]["written"]
    assert held.keys() == written.keys()
    assert {part for key in held for part in key.split(".")} >= {"pera_A", "pera_B", "pera_h", "bias", "weight"}
    assert all(torch.equal(value, written[key]) for key, value in held.items())
    assert not found[name]["warned"]
    assert found[name]["same_random"]


def test_a_model_built_in_setup_is_not_there(found: dict[str, dict[str, Any]]) -> None:
    assert not found["ddp_fork setup"]["held"]
    assert found["ddp_fork setup"]["warned"]


@pytest.mark.parametrize("build_in", ["__init__", "setup", "configure_model"])
def test_later_runs_go_on_with_it(found: dict[str, dict[str, Any]], build_in: str) -> None:
    result = found[f"ddp_fork {build_in}"]
    # The test's rows are those of the validation.
    assert result["tested"] == pytest.approx(result["val_loss"], rel=1e-6)
    assert result["again"] < 0.95 * result["val_loss"]
