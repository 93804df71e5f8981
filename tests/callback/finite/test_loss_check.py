"""A loss that is not finite stops a run before the weights take harm, without making a GPU wait."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from pera_lightning import PeraCallback
from pera_lightning.callback.finite.late_number import LateNumber
from pera_lightning.callback.finite.loss_check import LossCheck
from pera_lightning.errors import TrainingError
from tests.support.callback_fits import make_trainer
from tests.support.models import Regressor
from tests.support.synchronisation import WithoutWaiting, treat_as_asynchronous

TRAINER = SimpleNamespace(global_step=3, current_epoch=1)


class Diverging(Regressor):
    """Whose loss is not finite from batch 5 on; notes the backward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.losses = self.backwards = 0

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.losses += 1
        loss = super().training_step(batch, batch_idx)
        return loss * float("nan") if self.losses > 5 else loss

    def on_after_backward(self) -> None:
        self.backwards += 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD((p for p in self.parameters() if p.requires_grad), lr=0.1, momentum=0.9)


def diverge(folder: Path, module: pl.LightningModule, words: str, **options: object) -> dict[str, Tensor]:
    torch.manual_seed(1)
    callback = PeraCallback(rank=2, adapter_dir=str(folder / "adapter"))
    with pytest.raises(TrainingError, match=words):
        make_trainer(folder, callback, **options).fit(module)
    assert not (folder / "adapter").exists()
    assert all(value.isfinite().all() for value in module.parameters())
    return {name: value.detach().clone() for name, value in module.named_parameters()}


@pytest.mark.parametrize(("accumulate", "step"), [(1, 5), (2, 2), (4, 1)])
def test_the_weights_are_those_of_the_step_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int, step: int
) -> None:
    options = {"accumulate_grad_batches": accumulate, "max_epochs": 3}
    at_once = diverge(tmp_path / "cpu", module := Diverging(), f"loss nan at step {step}", **options)
    assert module.backwards == 5
    treat_as_asynchronous(monkeypatch)
    late = diverge(tmp_path / "gpu", module := Diverging(), f"loss nan at step {step}", **options)
    # The last backward pass is queued before anybody knows.
    assert module.backwards == 6
    assert late.keys() == at_once.keys()
    assert all(torch.equal(late[name], value) for name, value in at_once.items())


class Undefined(Regressor):
    """Whose loss is not finite from the first batch on."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * math.nan


def test_before_the_first_step_no_learning_rate_is_blamed(tmp_path: Path) -> None:
    diverge(tmp_path, Undefined(), r"(?s)loss nan at step 0, epoch 0; before .*fix: +no step was made yet")


class BadRow(Regressor):
    """Whose data has one NaN at a later batch, and a mask of infinities everywhere."""

    def train_dataloader(self) -> Any:
        torch.manual_seed(0)
        inputs, targets = torch.randn(12, 6), torch.randn(12, 2)
        inputs[9, 2] = math.nan
        mask = torch.full((12, 2), -math.inf)
        return DataLoader(TensorDataset(inputs, targets, mask), batch_size=4)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return super().training_step(batch[:2], batch_idx)


@pytest.mark.parametrize("late", [False, True])
def test_data_that_is_not_finite_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool) -> None:
    if late:
        treat_as_asynchronous(monkeypatch)
    words = r"(?s)loss nan at step 2, .*of the data, 1 values of 'batch\[0\]' are not finite.*fix: +mend the rows"
    diverge(tmp_path, BadRow(), words)


class StepsByHand(Diverging):
    """Whose last loss no optimizer step follows."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.manual_backward(super().training_step(batch, batch_idx))
        if self.losses < 6:
            self.optimizers().step()


def test_the_last_loss_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    treat_as_asynchronous(monkeypatch)
    options = {"max_epochs": 3, "limit_train_batches": 2, "enable_checkpointing": False}
    diverge(tmp_path, module := StepsByHand(), "loss nan at step 5", **options)
    assert module.losses == 6


def test_a_checkpoint_waits_for_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    treat_as_asynchronous(monkeypatch)
    callback = PeraCallback(rank=2)
    callback.on_before_backward(TRAINER, None, torch.tensor(math.inf))
    with pytest.raises(TrainingError, match="loss inf at step 3, epoch 1"):
        callback.on_save_checkpoint(TRAINER, None, {})


def test_what_was_noted_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    treat_as_asynchronous(monkeypatch)
    check = LossCheck()
    check.look()
    check.note(TRAINER, torch.tensor(math.nan))
    # The next backward pass without a step between them.
    with pytest.raises(TrainingError, match="loss nan at step 3"):
        check.note(TRAINER, torch.tensor(1.0))
    check.look()
    check.note(TRAINER, torch.tensor(math.nan))
    check.forget()
    check.look()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_losses_of_any_kind(bad: float, dtype: torch.dtype) -> None:
    check = LossCheck()
    for finite in (torch.tensor(1.0, dtype=dtype), torch.ones(1, dtype=dtype), torch.ones(2, 3, dtype=dtype)):
        check.note(TRAINER, finite.requires_grad_())
        unfinished = finite.detach().clone()
        unfinished.view(-1)[-1] = bad
        with pytest.raises(TrainingError, match="not finite"):
            check.note(TRAINER, unfinished)


def test_a_late_number() -> None:
    assert LateNumber(torch.tensor([2.5], requires_grad=True)).read() == 2.5
    assert not LateNumber(torch.tensor(1)).late


def test_a_step_waits_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Steady(Regressor):
        # The step of torch's Adam reads its count, which is on the CPU everywhere but in a fused one.
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD((p for p in self.parameters() if p.requires_grad), lr=0.1)

    watch = WithoutWaiting()
    treat_as_asynchronous(monkeypatch, watch.mode)
    callback = PeraCallback(rank=2, energy_every_n_steps=1, polynomial_start_step=3)
    options = {"gradient_clip_val": 1.0, "limit_val_batches": 0, "enable_checkpointing": False}
    trainer = make_trainer(tmp_path, callback, watch, **options)
    trainer.fit(Steady())
    assert watch.batches == trainer.global_step == 8
    assert "pera_energy" in trainer.callback_metrics
    monkeypatch.undo()
    # So it would be found.
    with pytest.raises(AssertionError, match="_local_scalar_dense"):
        make_trainer(tmp_path / "at once", PeraCallback(rank=2), WithoutWaiting(), **options).fit(Steady())
