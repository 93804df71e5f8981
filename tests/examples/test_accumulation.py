"""The example of docs/accumulation.md runs as printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
@pytest.mark.filterwarnings("ignore:.*ModelCheckpoint.*:UserWarning")
def test_the_example_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "accumulation.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(example, found)
    # Of the two sentences that are left at the end of an epoch, ten tokens, before the last step.
    module, trainer = found["trainer"].lightning_module, found["trainer"]
    assert trainer.global_step == 4
    assert trainer.callback_metrics["train_loss"] == module.accumulation.loss
