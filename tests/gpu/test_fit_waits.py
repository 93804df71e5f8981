"""The callback makes no step of a fit wait for the GPU that does not wait without it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from pera_lightning import PeraCallback, WeightedAccumulation
from tests.gpu.test_training_step import WAITS
from tests.support.callback_fits import make_trainer
from tests.support.models import Regressor

FIRST = 2
"""Steps before make what stays: optimizer states, compiled kernels."""


class CountWaits(pl.Callback):
    """Notes where steps wait: forward, backward pass and optimizer, with all callbacks in between."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self._caught: Any = None

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step >= FIRST:
            self._caught = warnings.catch_warnings(record=True)
            self._log = self._caught.__enter__()
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")

    def on_train_batch_end(self, *_: Any) -> None:
        if self._caught is not None:
            torch.cuda.set_sync_debug_mode("default")
            self._caught.__exit__(None, None, None)
            self._caught = None
            self.found += [
                f"{warning.filename}:{warning.lineno}" for warning in self._log if WAITS in f"{warning.message}"
            ]


class Fused(Regressor):
    """Whose optimizer is given the answer whether its gradients are finite on the device."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW((p for p in self.parameters() if p.requires_grad), lr=0.02, fused=True)


@pytest.mark.parametrize("kind", [Regressor, Fused])
@pytest.mark.parametrize(
    "options",
    [{}, {"dropout": 0.1}, {"coefficient_scale": "auto"}, {"energy_every_n_steps": 1}],
    ids=["plain", "dropout", "auto scale", "energy"],
)
def test_no_step_waits(cuda: torch.device, tmp_path: Path, options: dict[str, Any], kind: type[Regressor]) -> None:
    found = []
    for callbacks in ([], [PeraCallback(rank=2, **options)]):
        waits = CountWaits()
        trainer = make_trainer(
            tmp_path, waits, *callbacks, accelerator="gpu", devices=1, max_epochs=3, enable_checkpointing=False
        )
        trainer.fit(kind())
        found.append(waits.found)
    plain, adapted = found
    assert len(adapted) <= len(plain), adapted


class Weighed(Regressor):
    """Weighs its batches by a number that is on the GPU alone."""

    def __init__(self) -> None:
        super().__init__()
        self.accumulation = WeightedAccumulation(self)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.accumulation.weigh(super().training_step(batch, batch_idx), (batch[1] > 0).sum())


def test_no_step_with_weights_waits(cuda: torch.device, tmp_path: Path) -> None:
    found = []
    for kind in (Regressor, Weighed):
        waits = CountWaits()
        options = {"accelerator": "gpu", "devices": 1, "max_epochs": 4, "accumulate_grad_batches": 2}
        make_trainer(tmp_path, waits, enable_checkpointing=False, **options).fit(kind())
        found.append(waits.found)
    plain, weighed = found
    assert len(weighed) <= len(plain), weighed
