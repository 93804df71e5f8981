"""The polynomial terms join in at a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from pera_lightning import PeraCallback
from pera_lightning.errors import ConfigError
from pera_lightning.injection import adapted_layers
from tests.support.models import Regressor
from tests.support.trainers import cpu_trainer


class Decaying(Regressor):
    """With an optimizer that moves whatever has a gradient, even one of zero."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW((p for p in self.parameters() if p.requires_grad), lr=0.02, weight_decay=0.1)


class Recorder(pl.Callback):
    """The coefficients after every optimizer step, and the losses."""

    def __init__(self) -> None:
        self.coefficients: list[float] = []
        self.losses: list[float] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *batch: object
    ) -> None:
        present = [layer.pera_h for _, layer in adapted_layers(pl_module) if layer.pera_h is not None]
        self.coefficients.append(sum(h.abs().sum().item() for h in present))
        self.losses.append(outputs["loss"].item())


def record(folder: Path, callback: PeraCallback, **options: object) -> Recorder:
    torch.manual_seed(5)
    recorder = Recorder()
    trainer = cpu_trainer(folder, callback, recorder, **options)
    trainer.fit(Decaying())
    return recorder


@pytest.mark.parametrize(("accumulate", "held"), [(1, 2), (2, 5)])
def test_coefficients_wait_and_then_train(tmp_path: Path, accumulate: int, held: int) -> None:
    callback = PeraCallback(2, coefficient_scale=30.0, polynomial_start_step=2)
    recorder = record(tmp_path, callback, accumulate_grad_batches=accumulate)
    assert [value == 0 for value in recorder.coefficients] == [True] * held + [False] * (8 - held)


def test_until_then_it_is_a_plain_lora(tmp_path: Path) -> None:
    waiting = record(tmp_path / "pera", PeraCallback(2, coefficient_scale=30.0, polynomial_start_step=8))
    plain = record(tmp_path / "lora", PeraCallback(2, order=1))
    assert waiting.losses == pytest.approx(plain.losses, rel=1e-6)
    assert record(tmp_path / "at once", PeraCallback(2, coefficient_scale=30.0)).coefficients[1] > 0


def test_a_step_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="polynomial_start_step"):
        PeraCallback(2, polynomial_start_step=-1)
