"""A fit that goes on from a checkpoint keeps the earlier rows of its CSV log, in the same folder."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from pera_lightning.cli.fit.earlier_files import earlier_files_kept
from tests.cli.fit.test_earlier_files import Module, failing

pytestmark = pytest.mark.filterwarnings("ignore:Experiment logs directory .* exists and is not empty:UserWarning")


def fit(folder: Path, epochs: int, ckpt_path: str | None = None, fails: str = "nowhere") -> list[dict[str, str]]:
    """Two steps an epoch; returns the rows of the log."""
    quiet: Any = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(
        logger=CSVLogger(folder, name="", version="fit"),
        callbacks=[ModelCheckpoint(folder / "kept", filename="end", enable_version_counter=False)],
        max_epochs=epochs,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        **quiet,
    )
    loader = DataLoader(torch.ones(4, 2), batch_size=2)
    with earlier_files_kept(trainer):
        trainer.fit(Module(failing(fails)), loader, ckpt_path=ckpt_path)
    with (folder / "fit" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*no `val_dataloader`", "ignore:Checkpoint directory"
)
def test_the_log_goes_on(tmp_path: Path) -> None:
    first = fit(tmp_path, 1)
    assert [row["step"] for row in first] == ["0", "1"]
    # As of a run that was killed behind its last checkpoint.
    with (tmp_path / "fit" / "metrics.csv").open("a") as file:
        file.write("1,7.0,2\n")
    rows = fit(tmp_path, 2, str(tmp_path / "kept" / "end.ckpt"))
    assert rows[:2] == first
    assert [row["step"] for row in rows] == ["0", "1", "2", "3"]
    assert rows[2]["loss"] != "7.0"
    before = (tmp_path / "fit" / "metrics.csv").read_bytes()
    with pytest.raises(RuntimeError, match="step 0"):
        fit(tmp_path, 3, str(tmp_path / "kept" / "end.ckpt"), fails="step 0")
    assert (tmp_path / "fit" / "metrics.csv").read_bytes() == before
    # Begun anew it has nothing to do with the earlier one.
    assert [row["step"] for row in fit(tmp_path, 1)] == ["0", "1"]
