"""What goes wrong in one process ends all of them, at once and with the first one's message."""

from __future__ import annotations

import json

import pytest

from tests.strategies.test_ddp import run


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    folder = tmp_path_factory.mktemp("failing")
    run("tests.support.failing", str(folder))
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        ("nan0", "TrainingError: The loss is not finite"),
        ("nan1", "TrainingError: The loss is not finite"),
        ("target", "TargetError: target_modules holds a pattern that matches no module"),
        ("folder", "AdapterFileError: The trained adapter cannot be written"),
        ("options", "CheckpointError: The checkpoint does not fit the adapters of this run"),
    ],
)
def test_all_processes_end(found: dict[str, dict[str, object]], problem: str, words: str) -> None:
    assert words in str(found[problem]["error"])
    # The collective that the others wait in would give up after half an hour.
    assert float(str(found[problem]["seconds"])) < 40
