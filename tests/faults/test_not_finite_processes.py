"""One of several processes had numbers that are not finite, and stopped alone, or trained all the others to NaN."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pera_lightning.checkpoint.finite_values import not_finite
from pera_lightning.checkpoint.training.training_checkpoint import read_checkpoint
from tests.support.processes import run_script
from tests.support.spoiled_processes import STEP

STRATEGIES = ("OnOneRank", "ByHand", "Sharded")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spoiled")
    # It ends at once; a process that waited for the other would not in the time there is.
    run_script("tests.support.spoiled_processes", folder, processes=2)
    return folder


def found(folder: Path, kind: str, bad: str) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{rank}.json").read_text())[f"{kind} {bad}"] for rank in (0, 1)]


@pytest.mark.parametrize("kind", STRATEGIES)
@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_all_stop_before_the_step(folder: Path, kind: str, bad: str) -> None:
    for rank, process in enumerate(found(folder, kind, bad)):
        assert "before the weights take harm" in process["message"]
        assert f"at step {STEP}, epoch 1" in process["message"]
        assert process["finite"]
        if bad == "loss" and kind != "ByHand":
            assert "The loss is not finite" in process["message"]
            assert ("another process's; loss 0." in process["message"]) is (rank == 0)
        if bad == "gradient":
            assert "Gradients are not finite" in process["message"]


@pytest.mark.parametrize("kind", STRATEGIES)
def test_all_refuse_to_write_what_one_holds(folder: Path, kind: str) -> None:
    first, second = found(folder, kind, "weight")
    assert "A checkpoint would hold values that are not finite; it is not written" in first["message"]
    assert "values of another process at step 3" in first["message"]
    assert "values of 'net.2.pera_B' at step 3" in second["message"]


@pytest.mark.parametrize("kind", STRATEGIES)
@pytest.mark.parametrize("bad", ["loss", "gradient", "weight"])
def test_the_last_checkpoint_is_good_and_named(folder: Path, kind: str, bad: str) -> None:
    written = {path.name for path in (folder / f"{kind} {bad}").glob("*.ckpt")}
    steps = range(1, STEP + (bad != "weight"))
    assert written == {f"step={step}.ckpt" for step in steps}
    last = folder / f"{kind} {bad}" / f"step={steps[-1]}.ckpt"
    assert not not_finite(read_checkpoint(last).tensors())
    assert not (folder / f"{kind} {bad}" / "adapter").exists()
    for process in found(folder, kind, bad):
        assert f"last good checkpoint, of step {steps[-1]}: fit(ckpt_path='{last}')" in process["message"]
