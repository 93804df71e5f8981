"""What goes wrong in one process ends all of them, at once and with the first one's message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.processes import run_script


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("failing")
    run_script("tests.support.failing", folder)
    return folder


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        ("nan0", "TrainingError: The loss is not finite"),
        ("nan1", "TrainingError: The loss is not finite"),
        ("target", "TargetError: target_modules holds a pattern that matches no module"),
        ("folder", "FolderError: What is written needs a folder"),
        ("options", "CheckpointError: The checkpoint does not fit the adapters of this run"),
    ],
)
def test_all_processes_end(folder: Path, problem: str, words: str) -> None:
    found = json.loads((folder / "found.json").read_text())
    assert words in found[problem]["error"]
    # The collective that the others wait in would give up after half an hour.
    assert found[problem]["seconds"] < 40
