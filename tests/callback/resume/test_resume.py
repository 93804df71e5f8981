"""An interrupted run equals the uninterrupted one bit by bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import StatefulDistributedSampler

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


class AsksForSteps(Noisy):
    """As modules with a schedule do; Lightning makes the iterator over the data for that, before `on_fit_start`."""

    def configure_optimizers(self) -> Any:
        assert self.trainer.estimated_stepping_batches == 3 * BATCHES
        return super().configure_optimizers()


@pytest.mark.parametrize("saving", FINISHED_EPOCH)
def test_where_the_iterator_is_made_early(tmp_path: Path, saving: str) -> None:
    modules = AsksForSteps(DataLoader), AsksForSteps(DataLoader)
    check_same(tmp_path, "step=6", modules, saving=FINISHED_EPOCH[saving], max_epochs=3)


class WithDistributedSampler(Noisy):
    """Its sampler takes a state when it is first asked for a row."""

    def train_dataloader(self) -> DataLoader:
        sampler = StatefulDistributedSampler(self.rows, num_replicas=1, rank=0)
        return StatefulDataLoader(self.rows, batch_size=8, sampler=sampler)


@pytest.mark.parametrize("batches", [BATCHES, 4])
def test_after_a_finished_epoch_of_a_distributed_sampler(tmp_path: Path, batches: int) -> None:
    modules = WithDistributedSampler(), WithDistributedSampler()
    options = {"saving": AT_EPOCH_END, "limit_train_batches": batches}
    rest = check_same(tmp_path, f"step={batches}", modules, **options)
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


@pytest.mark.parametrize("now", [{"limit_val_batches": 0}, {"check_val_every_n_epoch": 2}], ids=str)
@pytest.mark.parametrize("length", LENGTHS, ids=str)
@pytest.mark.parametrize("saving", ["after last batch", "after validation"])
@pytest.mark.parametrize("loader", [DataLoader, StatefulDataLoader])
def test_without_the_validation_of_the_first_run(
    tmp_path: Path, loader: Any, saving: str, length: dict[str, Any], now: dict[str, Any]
) -> None:
    train(tmp_path / "whole", Noisy(loader), 1, saving=FINISHED_EPOCH[saving], max_epochs=2)
    rest = Noisy(loader)
    train(tmp_path / "rest", rest, 99, tmp_path / "whole" / "step=6.ckpt", **length, **now)
    assert list(rest.losses) == [(epoch, batch) for epoch in (1, 2) for batch in range(BATCHES)]


def test_within_an_epoch_without_the_validation_of_the_first_run(tmp_path: Path) -> None:
    options = {"saving": {"every_n_train_steps": 3}, "max_epochs": 1}
    train(tmp_path / "whole", Noisy(StatefulDataLoader), 1, val_check_interval=3, **options)
    rest = Noisy(StatefulDataLoader)
    train(tmp_path / "rest", rest, 99, tmp_path / "whole" / "step=3.ckpt", limit_val_batches=0, **options)
    assert list(rest.losses) == [(0, 3), (0, 4), (0, 5)]


class TwoLoaders(Noisy):
    def train_dataloader(self) -> Any:
        one, two = super().train_dataloader(), super().train_dataloader()
        return CombinedLoader([one, two], "min_size")

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return super().training_step(batch[0], batch_idx)


@pytest.mark.parametrize(
    "other",
    [lambda: Noisy(DataLoader), lambda: Noisy(StatefulDataLoader, 1), lambda: TwoLoaders(StatefulDataLoader)],
    ids=["plain", "workers", "two"],
)
def test_goes_on_with_other_loaders(tmp_path: Path, other: Any) -> None:
    train(tmp_path / "whole", Noisy(StatefulDataLoader), 1, saving=AT_EPOCH_END, max_epochs=2)
    rest = other()
    with pytest.warns(UserWarning, match="read by other loaders"):
        train(tmp_path / "rest", rest, 99, tmp_path / "whole" / "step=6.ckpt", max_epochs=2)
    assert list(rest.losses) == [(1, batch) for batch in range(BATCHES)]


class Counting(Noisy):
    """Counts the batches of its epochs."""

    def __init__(self, loader: Any = DataLoader) -> None:
        super().__init__(loader)
        self.epochs: list[int] = []

    def on_train_epoch_end(self) -> None:
        self.epochs.append(len(self.losses))


@pytest.mark.parametrize("loader", [DataLoader, StatefulDataLoader])
def test_an_epoch_that_was_not_closed_is_closed(tmp_path: Path, loader: Any) -> None:
    rest = check_same(tmp_path, "step=6", (Counting(loader), Counting(loader)), saving=AFTER_VALIDATION)
    assert rest.epochs == [0, 6, 12]


class Manual(Noisy):
    """Steps after every fourth batch, across epochs."""

    def __init__(self) -> None:
        super().__init__(StatefulDataLoader)
        self.automatic_optimization = False

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        if len(self.losses) % 4 == 0:
            self.optimizers().step()
            self.optimizers().zero_grad()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam((p for p in self.parameters() if p.requires_grad), lr=0.02)


def test_gradients_that_wait_beyond_an_epoch(tmp_path: Path) -> None:
    whole, rest = Manual(), Manual()
    options = {"save_after": 5, "limit_val_batches": 0, "max_epochs": 2}
    train(tmp_path / "whole", whole, 1, **options)
    # Two of four batches were done.
    rest.losses = {(0, batch): torch.tensor(0.0) for batch in range(BATCHES)}
    train(tmp_path / "rest", rest, 99, tmp_path / "whole" / "extra.ckpt", **options)
    assert all(torch.equal(rest.losses[1, batch], whole.losses[1, batch]) for batch in range(BATCHES))
    assert_equal(adapter_state_dict(whole), adapter_state_dict(rest), "adapter")


class WithBatchNorm(Noisy):
    def _build(self) -> None:
        super()._build()
        self.net[1] = torch.nn.BatchNorm1d(self.width)


def test_running_statistics_stay_within_an_epoch_too(tmp_path: Path) -> None:
    modules = WithBatchNorm(StatefulDataLoader), WithBatchNorm(StatefulDataLoader)
    rest = check_same(tmp_path, "step=2", modules, saving={"every_n_train_steps": 2}, limit_val_batches=0)
    assert not rest.net[1].running_mean.any()


class Generated(Noisy):
    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.rows, batch_size=8, shuffle=True, generator=torch.Generator())


def test_warns_of_a_generator_that_is_in_no_checkpoint(tmp_path: Path) -> None:
    train(tmp_path, Generated(), 1, saving=AT_EPOCH_END, max_epochs=2)
    with pytest.warns(UserWarning, match="has a generator of its own"):
        train(tmp_path / "rest", Generated(), 1, tmp_path / "step=6.ckpt", max_epochs=2)


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
    with pytest.warns(UserWarning, match="before ReduceLROnPlateau had seen the last metric"):
        train(tmp_path / "rest", OnPlateau(), 1, tmp_path / "step=6.ckpt", saving=AT_EPOCH_END, max_epochs=2)


def test_testing_draws_its_own_random_numbers(tmp_path: Path) -> None:
    train(tmp_path, Noisy(), 1, saving=AT_EPOCH_END)
    first = tmp_path / "step=6.ckpt"
    stored = torch.load(first, weights_only=True)["pera_processes"][0]["random"]["torch"]
    callback = PeraCallback(2, dropout=0.1, coefficient_scale="auto")
    trainer = pl.Trainer(default_root_dir=tmp_path, callbacks=[callback], logger=False, enable_progress_bar=False)
    trainer.test(Noisy(), ckpt_path=str(first), verbose=False)
    assert not torch.equal(torch.get_rng_state(), stored)
