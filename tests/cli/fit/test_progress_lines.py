"""A run whose output is no terminal tells how far it is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pera_lightning import PeraCallback
from pera_lightning.cli.fit import progress_lines
from pera_lightning.cli.fit.progress_lines import ProgressLines
from tests.conftest import ROOT
from tests.support.callback_fits import make_trainer
from tests.support.comparisons import write_fit
from tests.support.models import Regressor


def lines_of(lines: ProgressLines, folder: Path, capsys: pytest.CaptureFixture[str], module: Regressor) -> list[str]:
    """What is printed by a fit of two epochs of four steps, each with a validation."""
    options = {"enable_progress_bar": True, "enable_checkpointing": False, "max_epochs": 2}
    make_trainer(folder, PeraCallback(rank=2), lines, **options).fit(module)
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith(("step ", "validation"))]


class Logging(Regressor):
    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = self._loss(batch)
        self.log("train_loss", loss, prog_bar=True)
        return loss


def test_the_first_step_the_validations_and_the_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = lines_of(ProgressLines(), tmp_path, capsys, Logging())
    form = r"step (\d+) of 8, epoch (\d) of 2, train_loss [\d.]+, .*steps/s, 0:00:\d\d left"
    steps = [re.match(form, line) for line in found]
    assert [tuple(map(int, step.groups())) for step in steps if step] == [(1, 1), (4, 1), (8, 2), (8, 2)]


def test_every_so_many_seconds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_lines, "EVERY", 0.0)
    found = lines_of(ProgressLines(), tmp_path, capsys, Regressor())
    steps = [int(line.split()[1]) for line in found if line.startswith("step")]
    # A line after each validation too.
    assert steps == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8]
    assert all(re.search(r", loss [\d.]+,", line) for line in found if line.startswith("step 2"))
    assert "validation: batch 1 of 4" in found


def test_a_part_of_the_run_has_its_line_where_that_takes_some_seconds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_lines, "PARTS", 4)
    monkeypatch.setattr(progress_lines, "LEAST", 0.0)
    found = lines_of(ProgressLines(), tmp_path, capsys, Regressor())
    assert [int(line.split()[1]) for line in found] == [1, 3, 4, 6, 8, 8]


def test_other_processes_say_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Other(ProgressLines):
        def setup(self, trainer: object, pl_module: object, stage: str) -> None:
            # As in a process that is not the first.
            self.disable()

    assert lines_of(Other(), tmp_path, capsys, Regressor()) == []


EXPECTED = (
    r"Seed set to 0",
    r"GPU available: ",
    r"(train|val|test): \d+ rows",
    r".*Checkpoint directory .* exists and is not empty",
    # What transformers says of a head that is to be trained.
    r".* LOAD REPORT|Key +\||-+\+|classifier\.\w+ +\| MISSING|Notes:|- MISSING",
    r"PERA: ",
    r"step \d of 4, epoch \d of 2, train_loss ",
    r"`Trainer.fit` stopped: `max_epochs=2` reached",
    r"Loss curve written to ",
)


def test_the_output_of_a_fit_without_a_terminal(tmp_path: Path) -> None:
    """Nothing is in it but progress, what this run is about, and lightning's own plain facts."""
    write_fit(tmp_path)
    words = ("fit", "--config", "fit.yaml", "--trainer.enable_model_summary", "false")
    run = subprocess.run(
        [sys.executable, "-m", "pera_lightning", *words],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    lines = [line.strip() for line in run.stdout.splitlines() if line.strip()]
    assert "step 4 of 4, epoch 2 of 2" in run.stdout
    assert [line for line in lines if not re.match("|".join(EXPECTED), line)] == []
