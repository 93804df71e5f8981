"""Of a scheduler's state whatever was there was set, and a fit ended in the middle: 'int' object is not callable."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as lr

from pera_lightning import PeraCallback
from pera_lightning.callback.resume.restored_schedulers import scheduler_problem
from pera_lightning.callback.resume.restored_training import schedulers_problem
from pera_lightning.errors import CheckpointError
from tests.support.callback_fits import make_trainer
from tests.support.models import Regressor
from tests.support.trainers import SAFE_LOADING

# Of SequentialLR, which steps its parts by number.
pytestmark = pytest.mark.filterwarnings("ignore:The epoch parameter in")

SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "StepLR": lambda optimizer: lr.StepLR(optimizer, 1, 0.9),
    "MultiStepLR": lambda optimizer: lr.MultiStepLR(optimizer, [2, 4, 4]),
    "LambdaLR": lambda optimizer: lr.LambdaLR(optimizer, lambda step: 1.0),
    "MultiplicativeLR": lambda optimizer: lr.MultiplicativeLR(optimizer, lambda step: 0.9),
    "OneCycleLR": lambda optimizer: lr.OneCycleLR(optimizer, 0.1, total_steps=5),
    "ReduceLROnPlateau": lr.ReduceLROnPlateau,
    "CosineAnnealingLR": lambda optimizer: lr.CosineAnnealingLR(optimizer, 7),
    "CosineAnnealingWarmRestarts": lambda optimizer: lr.CosineAnnealingWarmRestarts(optimizer, 3, 2),
    "CyclicLR": lambda optimizer: lr.CyclicLR(optimizer, 0.01, 0.1, 3, mode="exp_range", gamma=0.9),
    "PolynomialLR": lr.PolynomialLR,
    "SequentialLR": lambda optimizer: lr.SequentialLR(
        optimizer, [lr.ConstantLR(optimizer), lr.ExponentialLR(optimizer, 0.9)], [3]
    ),
    "ChainedScheduler": lambda optimizer: lr.ChainedScheduler([lr.LinearLR(optimizer)], optimizer),
}


def made(kind: str) -> Any:
    groups = [{"params": [nn.Parameter(torch.zeros(2))]}, {"params": [nn.Parameter(torch.zeros(3))], "lr": 0.2}]
    return SCHEDULERS[kind](torch.optim.SGD(groups, lr=0.1, momentum=0.9))


def step(scheduler: Any) -> None:
    scheduler.optimizer.step()
    scheduler.step(0.5) if isinstance(scheduler, lr.ReduceLROnPlateau) else scheduler.step()


def held_by(kind: str, steps: int) -> dict[str, Any]:
    scheduler = made(kind)
    for _ in range(steps):
        step(scheduler)
    file = io.BytesIO()
    torch.save(scheduler.state_dict(), file)
    file.seek(0)
    held: dict[str, Any] = torch.load(file, weights_only=True)
    return held


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_whole_states_of_all_schedulers_of_torch(kind: str) -> None:
    for steps in range(6):
        scheduler = made(kind)
        before = {name: value for name, value in scheduler.state_dict().items() if name == "last_epoch"}
        assert scheduler_problem(scheduler, held_by(kind, steps)) is None, steps
        assert scheduler.state_dict().items() >= before.items(), "looking has changed it"


WRONG: tuple[Any, ...] = ("x", None, -1, [], 10**400, float("nan"), [1e308] * 3, {}, 1 << 40, 0, True, 5, torch.ones(2))


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_what_is_not_refused_can_step(kind: str) -> None:
    whole = held_by(kind, 2)
    refused = 0
    for name in whole:
        for value in WRONG:
            scheduler, held = made(kind), {**whole, name: value}
            if scheduler_problem(scheduler, held):
                refused += 1
                continue
            scheduler.load_state_dict(held)
            # One with fewer steps in all than before is at its end.
            with contextlib.suppress(ValueError):
                step(scheduler)
    assert refused > len(whole) * len(WRONG) / 2


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_states_hold_no_methods_and_all_of_their_own(kind: str) -> None:
    whole = held_by(kind, 2)
    for name in ("step", "get_lr", "load_state_dict", "__class__", "optimizer", "anything"):
        assert repr(name) in str(scheduler_problem(made(kind), {**whole, name: 5}))
    for name in whole.keys() - {"_is_initial", "_get_lr_called_within_step", "verbose"}:
        held = {key: value for key, value in whole.items() if key != name}
        assert f"'{name}'] is missing for {kind}" in str(scheduler_problem(made(kind), held))
    assert scheduler_problem(made(kind), {**whole, "verbose": False}) is None


def test_each_scheduler_has_its_state() -> None:
    scheduler = made("StepLR")
    assert schedulers_problem([scheduler], [held_by("StepLR", 1)]) is None
    assert "0 states of schedulers, and the run has 1" in str(schedulers_problem([scheduler], []))
    for damaged in (None, 5, [5], [held_by("PolynomialLR", 1)]):
        assert schedulers_problem([scheduler], damaged) is not None


class Mine(lr.LRScheduler):
    """Of a scheduler of others what torch keeps is known."""

    mine: float | None = None

    def get_lr(self) -> list[Any]:
        return [0.1]


def test_a_scheduler_of_others() -> None:
    scheduler = Mine(torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1))
    held = {**scheduler.state_dict(), "theirs": "x"}
    assert scheduler_problem(scheduler, held) is None
    assert "last_epoch" in str(scheduler_problem(scheduler, {**held, "last_epoch": "x"}))
    assert "'get_lr'" in str(scheduler_problem(scheduler, {**held, "get_lr": 5}))


class Scheduled(Regressor):
    def configure_optimizers(self) -> Any:
        optimizer: Any = super().configure_optimizers()
        return [optimizer], [lr.StepLR(optimizer, 1, 0.9)]


def test_the_trainer_refuses_before_it_goes_on(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, PeraCallback(rank=2), enable_checkpointing=False, max_epochs=1)
    trainer.fit(Scheduled())
    trainer.save_checkpoint(tmp_path / "whole.ckpt")
    held = torch.load(tmp_path / "whole.ckpt", weights_only=True)
    held["lr_schedulers"][0]["step"] = 5
    torch.save(held, tmp_path / "changed.ckpt")
    for name in ("whole", "changed"):
        trainer = make_trainer(tmp_path, PeraCallback(rank=2), enable_checkpointing=False, max_epochs=2)
        with (
            pytest.raises(CheckpointError, match=r"changed\.ckpt: it has 'step' for StepLR")
            if name == "changed"
            else (contextlib.nullcontext())
        ):
            trainer.fit(Scheduled(), ckpt_path=tmp_path / f"{name}.ckpt", **SAFE_LOADING)
