"""The command line's progress bar reads metrics now and then, not after every batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import RichProgressBar

from pera_lightning import PeraCallback
from pera_lightning.cli.fit import progress_bar
from pera_lightning.cli.fit.progress_bar import PeraProgressBar
from tests.support.callback_fits import make_trainer
from tests.support.models import Regressor
from tests.support.synchronisation import WithoutWaiting, treat_as_asynchronous


class Shown(Regressor):
    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = self._loss(batch)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD((p for p in self.parameters() if p.requires_grad), lr=0.1)


class Reading(PeraProgressBar):
    """Notes after how many steps of training it reads; 0.1 seconds pass from one question to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []

    def get_metrics(self, trainer: object, pl_module: Regressor) -> dict[str, object]:
        before = self._numbers
        found = super().get_metrics(trainer, pl_module)
        if found is not before:
            self.steps.append(pl_module.global_step)
            assert found["train_loss"] == pytest.approx(trainer.callback_metrics["train_loss"].item())
        return found


def test_reads_a_few_times_a_second_and_at_every_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter(range(1000))
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: next(seconds) / 10)
    monkeypatch.setattr(progress_bar, "INTERVAL", 0.29)
    bar = Reading()
    options = {"enable_progress_bar": True, "enable_checkpointing": False, "limit_train_batches": 4}
    make_trainer(tmp_path, PeraCallback(rank=2), bar, **options).fit(Shown())
    # After the first batch of four and the last, after the validation, and after the epoch.
    assert bar.steps == [1, 4, 4, 4, 7, 8, 8]


def fit_with(bar: RichProgressBar, folder: Path, watch: WithoutWaiting) -> None:
    options = {"enable_progress_bar": True, "enable_checkpointing": False, "limit_val_batches": 0, "max_epochs": 1}
    make_trainer(folder, PeraCallback(rank=2, energy_every_n_steps=0), bar, watch, **options).fit(Shown())


def test_no_batch_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_bar, "INTERVAL", 1e9)
    watch = WithoutWaiting()
    treat_as_asynchronous(monkeypatch, watch.mode)
    bar = PeraProgressBar()
    bar._read_at = 0.0
    fit_with(bar, tmp_path, watch)
    assert watch.batches == 4
    with pytest.raises(AssertionError, match="waits"):
        fit_with(RichProgressBar(), tmp_path, WithoutWaiting())
