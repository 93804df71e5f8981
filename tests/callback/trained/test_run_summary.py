from __future__ import annotations

from pathlib import Path

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from pera_lightning import InstructionDataModule, PeraCallback
from pera_lightning.checkpoint.training.training_checkpoint import read_checkpoint
from tests.support.models import Regressor
from tests.support.trainers import cpu_trainer


def card(folder: Path) -> dict[str, str]:
    rows = [line.strip("| \n").split(" | ") for line in (folder / "README.md").read_text().splitlines() if "|" in line]
    return {row[0]: row[1] for row in rows if len(row) == 2}


@pytest.mark.parametrize("monitor", [None, "val_loss"])
def test_the_card_tells_of_the_run(monitor: str | None, tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path / "checkpoints", filename="best", monitor=monitor)
    trainer = cpu_trainer(
        tmp_path, PeraCallback(2, energy_every_n_steps=1, adapter_dir=str(tmp_path / "adapter")), saving
    )
    trainer.fit(Regressor())
    rows = card(tmp_path / "adapter")
    assert rows["trained"] == f"2 epochs, {trainer.global_step} steps"
    assert rows["val_loss, last"] == f"{trainer.callback_metrics['val_loss'].item():.4g}"
    assert "pera_energy, last" in rows
    if monitor is None:
        assert rows["weights"] == f"of step {trainer.global_step}, the last one"
    else:
        best = saving.best_model_path
        step, score = read_checkpoint(best).step, f"{float(saving.best_model_score):.4g}"  # type: ignore[arg-type]
        assert rows["weights"] == f"of step {step}, the best checkpoint {best} (val_loss {score})"


def test_names_of_data_without_their_place(tmp_path: Path) -> None:
    data = InstructionDataModule(train_files=[str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")])
    assert data.train_source == "a.jsonl, b.jsonl"
    assert InstructionDataModule(dataset="org/rows").train_source == "org/rows"
