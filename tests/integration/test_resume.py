"""An interrupted run equals the uninterrupted one bit by bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from pera_lightning import PeraCallback, adapter_state_dict
from tests.support.noisy import BATCHES, Noisy, train

pytestmark = [
    # Of Lightning about checkpoints kept elsewhere, and of torchdata about torch.
    pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
]

AFTER_LAST_BATCH = {"every_n_train_steps": BATCHES}
AT_EPOCH_END = {"every_n_epochs": 1, "save_on_train_epoch_end": True}
AFTER_VALIDATION = {"monitor": "val_loss", "save_on_train_epoch_end": False}
FINISHED_EPOCH = {
    "after last batch": AFTER_LAST_BATCH,
    "at epoch end": AT_EPOCH_END,
    "after validation": AFTER_VALIDATION,
}
VALIDATIONS = [
    {"limit_val_batches": 0},
    {"val_check_interval": 3},
    {"val_check_interval": 0.5},
    {"check_val_every_n_epoch": 2},
    {"check_val_every_n_epoch": None, "val_check_interval": 4},
]
LENGTHS = [{"max_epochs": 3}, {"max_steps": 3 * BATCHES}]


def check_same(folder: Path, first: str, modules: tuple[Noisy, Noisy], **options: Any) -> Noisy:
    """Go on from the checkpoint `first` with another seed; everything later is what the whole run had."""
    whole, rest = modules
    train(folder / "whole", whole, 1, **options)
    train(folder / "rest", rest, 99, folder / "whole" / f"{first}.ckpt", **options)
    check_rest(whole, rest)
    last = max((folder / "whole").glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns).name
    assert last != f"{first}.ckpt"
    ends = [torch.load(folder / part / last, weights_only=True) for part in ("whole", "rest")]
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "pera_processes", "loops"):
        assert_equal(ends[0][part], ends[1][part], part)
    return rest


def pair(*options: Any) -> tuple[Noisy, Noisy]:
    return Noisy(*options), Noisy(*options)


def check_rest(whole: Noisy, rest: Noisy) -> None:
    """Every loss and validation of `rest` is one of `whole`, and there are all that follow its first."""
    assert rest.losses.keys() == {step for step in whole.losses if step >= min(rest.losses)}
    assert len(rest.losses) > BATCHES
    assert all(torch.equal(whole.losses[step], loss) for step, loss in rest.losses.items())
    if rest.validations:
        assert rest.validations.keys() == {step for step in whole.validations if step >= min(rest.validations)}
        assert all(torch.equal(whole.validations[step], loss) for step, loss in rest.validations.items())
    assert_equal(adapter_state_dict(whole), adapter_state_dict(rest), "adapter")


def assert_equal(left: Any, right: Any, where: str) -> None:
    if isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_equal(left[key], right[key], f"{where}/{key}")
    elif isinstance(left, list):
        assert len(left) == len(right), where
        for index, values in enumerate(zip(left, right, strict=True)):
            assert_equal(*values, f"{where}/{index}")
    elif isinstance(left, torch.Tensor):
        assert torch.equal(left, right), where
    else:
        assert left == right, where


@pytest.mark.parametrize("length", LENGTHS, ids=str)
@pytest.mark.parametrize("saving", FINISHED_EPOCH)
@pytest.mark.parametrize("loader", [DataLoader, StatefulDataLoader])
def test_after_a_finished_epoch(tmp_path: Path, loader: Any, saving: str, length: dict[str, Any]) -> None:
    rest = check_same(tmp_path, "step=6", pair(loader), saving=FINISHED_EPOCH[saving], **length)
    assert min(rest.losses) == (1, 0)


@pytest.mark.parametrize("length", LENGTHS, ids=str)
@pytest.mark.parametrize("saving", ["after last batch", "at epoch end"])
def test_after_a_finished_epoch_without_validation(tmp_path: Path, saving: str, length: dict[str, Any]) -> None:
    check_same(tmp_path, "step=6", pair(), limit_val_batches=0, saving=FINISHED_EPOCH[saving], **length)


@pytest.mark.parametrize("length", LENGTHS, ids=str)
@pytest.mark.parametrize("validation", VALIDATIONS, ids=str)
def test_in_the_middle_of_an_epoch(tmp_path: Path, validation: dict[str, Any], length: dict[str, Any]) -> None:
    # Where there are validations within the epoch, one follows this batch.
    step = 4 if validation.get("val_check_interval") == 4 else 3
    saving = {"every_n_train_steps": step}
    rest = check_same(tmp_path, f"step={step}", pair(StatefulDataLoader), saving=saving, **validation, **length)
    assert min(rest.losses) == (0, step)
    if "val_check_interval" in validation:
        assert min(rest.validations) == (0, step, 0)


def test_a_validation_that_was_to_follow_is_made_up_for(tmp_path: Path) -> None:
    rest = check_same(tmp_path, "step=6", pair(), saving=AFTER_LAST_BATCH)
    assert min(rest.validations) == (0, 6, 0)


def test_a_validation_is_made_up_for_once(tmp_path: Path) -> None:
    options = {"saving": {"every_n_train_steps": 1}, "val_check_interval": 3, "max_epochs": 2}
    check_same(tmp_path, "step=3", pair(StatefulDataLoader), **options)
    after = [torch.load(tmp_path / part / "step=4.ckpt", weights_only=True)["loops"] for part in ("whole", "rest")]
    assert_equal(*after, "loops")


@pytest.mark.parametrize("batch", [0, 1, 2, 3, 5])
def test_within_accumulation(tmp_path: Path, batch: int) -> None:
    # The optimizer steps after batches 2 and 5.
    options = {"accumulate_grad_batches": 3, "save_after": batch, "saving": AT_EPOCH_END}
    rest = check_same(tmp_path, "extra", pair(StatefulDataLoader), **options)
    assert min(rest.losses) == ((0, batch + 1) if batch < 5 else (1, 0))


class Failing(Noisy):
    """Runs out of memory, say, before the last of three batches that make a step."""

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        if (self.current_epoch, batch_idx) == (0, 5):
            raise RuntimeError("no room")
        return super().training_step(batch, batch_idx)


def test_gradients_are_kept_when_the_last_batch_of_a_step_fails(tmp_path: Path) -> None:
    options = {"accumulate_grad_batches": 3, "saving": {**AT_EPOCH_END, "save_on_exception": True}}
    with pytest.raises(RuntimeError, match="no room"):
        train(tmp_path, Failing(StatefulDataLoader), 1, **options)
    checkpoint = torch.load(tmp_path / "step=1.ckpt", weights_only=True)
    assert checkpoint["pera_processes"][0]["gradients"].keys() == checkpoint["state_dict"].keys()


def test_only_waiting_gradients_are_kept(tmp_path: Path) -> None:
    for batch, kept in ((1, True), (2, False)):
        options = {"accumulate_grad_batches": 3, "save_after": batch, "saving": AT_EPOCH_END, "max_epochs": 1}
        train(tmp_path / str(batch), Noisy(), 1, **options)
        checkpoint = torch.load(tmp_path / str(batch) / "extra.ckpt", weights_only=True)
        assert bool(checkpoint["pera_processes"][0]["gradients"]) == kept


def test_mixed_precision(tmp_path: Path) -> None:
    check_same(tmp_path, "step=6", pair(), saving=AT_EPOCH_END, precision="bf16-mixed")


@pytest.mark.parametrize("loader", [DataLoader, StatefulDataLoader])
def test_workers_draw_the_same_in_a_new_epoch(tmp_path: Path, loader: Any) -> None:
    check_same(tmp_path, "step=6", pair(loader, 2), saving=AT_EPOCH_END, limit_val_batches=0)


@pytest.mark.filterwarnings("ignore:The run goes on in the middle of an epoch:UserWarning")
def test_workers_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    modules = pair(StatefulDataLoader, 2, 0.0)
    check_same(tmp_path, "step=2", modules, saving={"every_n_train_steps": 2}, limit_val_batches=0)


def test_warns_of_what_workers_drew(tmp_path: Path) -> None:
    options = {"saving": {"every_n_train_steps": 2}, "limit_val_batches": 0, "max_epochs": 1}
    train(tmp_path, Noisy(StatefulDataLoader, 2), 1, **options)
    with pytest.warns(UserWarning, match=r"what they draw at random \(augmentation\) will differ"):
        train(tmp_path / "rest", Noisy(StatefulDataLoader, 2), 1, tmp_path / "step=2.ckpt", **options)


class OnPlateau(Noisy):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam((p for p in self.parameters() if p.requires_grad), lr=0.02)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}


def test_warns_of_a_schedule_that_misses_a_metric(tmp_path: Path) -> None:
    train(tmp_path, OnPlateau(), 1, saving=AT_EPOCH_END, max_epochs=2)
    with pytest.warns(UserWarning, match="before ReduceLROnPlateau had seen the metric"):
        train(tmp_path / "rest", OnPlateau(), 1, tmp_path / "step=6.ckpt", saving=AT_EPOCH_END, max_epochs=2)


def test_testing_draws_its_own_random_numbers(tmp_path: Path) -> None:
    train(tmp_path, Noisy(), 1, saving=AT_EPOCH_END)
    first = tmp_path / "step=6.ckpt"
    stored = torch.load(first, weights_only=True)["pera_processes"][0]["random"]["torch"]
    callback = PeraCallback(2, dropout=0.1, coefficient_scale="auto")
    trainer = pl.Trainer(default_root_dir=tmp_path, callbacks=[callback], logger=False, enable_progress_bar=False)
    trainer.test(Noisy(), ckpt_path=str(first), verbose=False)
    assert not torch.equal(torch.get_rng_state(), stored)
