"""The adapter folder held another step's weights than its card said, or the last step's in place of the best."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from pera_lightning import PeraCallback
from tests.support.callback_fits import make_trainer
from tests.support.rising import Rising, is_of, rising, weights_row

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")


@pytest.fixture
def first(tmp_path: Path) -> ModelCheckpoint:
    """A run of one epoch, with its best checkpoint."""
    best = rising(tmp_path)
    make_trainer(tmp_path, PeraCallback(2), best, max_epochs=1).fit(Rising())
    return best


def go_on(folder: Path, best: ModelCheckpoint, last: str, **options: Any) -> Rising:
    module = Rising()
    trainer = make_trainer(folder, PeraCallback(2), best, **{"max_epochs": 2, **options})
    trainer.fit(module, ckpt_path=last)
    return module


def test_a_resumed_run_that_validates_keeps_the_best_of_the_whole_run(tmp_path: Path, first: ModelCheckpoint) -> None:
    again = rising(tmp_path)
    go_on(tmp_path, again, first.last_model_path)
    assert again.best_model_path == first.best_model_path
    assert is_of(tmp_path / "adapter", first.best_model_path)
    assert f"of step 4, the best checkpoint {first.best_model_path} (worse 4)" in weights_row(tmp_path / "adapter")


@pytest.mark.filterwarnings("ignore:.*could not find the monitored key:UserWarning")
@pytest.mark.parametrize(
    ("options", "steps"), [({"limit_val_batches": 0}, 8), ({"max_steps": 6}, 6), ({"check_val_every_n_epoch": 3}, 8)]
)
def test_a_resumed_run_that_does_not_validate_writes_its_last_step(
    tmp_path: Path, first: ModelCheckpoint, options: dict[str, Any], steps: int
) -> None:
    with pytest.warns(UserWarning, match=r"worse was not computed in this fit.*consolidate --checkpoint .*step=4"):
        module = go_on(tmp_path, rising(tmp_path), first.last_model_path, **options)
    assert is_of(tmp_path / "adapter", module)
    assert not is_of(tmp_path / "adapter", first.best_model_path)
    assert f"of step {steps}, the last one" in weights_row(tmp_path / "adapter")


def test_a_best_checkpoint_that_is_gone_is_named(tmp_path: Path, first: ModelCheckpoint) -> None:
    Path(first.best_model_path).unlink()
    with pytest.warns(UserWarning, match=r"step=4.ckpt is not what the adapter folder gets: it is not there any more"):
        module = go_on(tmp_path, rising(tmp_path), first.last_model_path)
    assert is_of(tmp_path / "adapter", module)
    assert "of step 8, the last one" in weights_row(tmp_path / "adapter")


def test_a_best_checkpoint_that_was_written_over_is_named(tmp_path: Path, first: ModelCheckpoint) -> None:
    other = ModelCheckpoint(tmp_path / "other", monitor="worse")
    make_trainer(tmp_path / "other", PeraCallback(2), other, max_epochs=1).fit(Rising())
    Path(other.best_model_path).replace(first.best_model_path)
    with pytest.warns(UserWarning, match=r"another run has written over it"):
        module = go_on(tmp_path, rising(tmp_path), first.last_model_path)
    assert is_of(tmp_path / "adapter", module)


@pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")
def test_a_new_folder_of_checkpoints_begins_a_new_choice(tmp_path: Path, first: ModelCheckpoint) -> None:
    moved = ModelCheckpoint(tmp_path / "moved", monitor="worse")
    module = go_on(tmp_path, moved, first.last_model_path)
    assert Path(moved.best_model_path).parent.name == "moved"
    assert is_of(tmp_path / "adapter", module)
    assert f"of step 8, the best checkpoint {moved.best_model_path} (worse 8)" in weights_row(tmp_path / "adapter")


@pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")
def test_a_best_path_without_a_score_is_no_best(tmp_path: Path, first: ModelCheckpoint) -> None:
    moved = ModelCheckpoint(tmp_path / "moved", monitor="worse", save_top_k=0)
    with pytest.warns(UserWarning, match="it is of another run"):
        module = go_on(tmp_path, moved, first.last_model_path)
    assert is_of(tmp_path / "adapter", module)


def test_nothing_left_to_train_leaves_the_folder(tmp_path: Path, first: ModelCheckpoint) -> None:
    before = (tmp_path / "adapter/README.md").stat().st_mtime_ns
    go_on(tmp_path, rising(tmp_path), first.last_model_path, max_epochs=-1, max_steps=4)
    assert (tmp_path / "adapter/README.md").stat().st_mtime_ns == before


def test_the_second_fit_of_a_trainer_goes_on_with_its_run(tmp_path: Path) -> None:
    best, module = rising(tmp_path), Rising()
    trainer = make_trainer(tmp_path, PeraCallback(2), best, max_epochs=1)
    trainer.fit(module)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module)
    assert is_of(tmp_path / "adapter", best.best_model_path)
    assert "of step 4, the best checkpoint" in weights_row(tmp_path / "adapter")


def test_a_metric_of_other_weights_is_named(tmp_path: Path) -> None:
    """Saved between validations: the metric is that of step 4, the weights are of step 6."""
    best = rising(tmp_path, every_n_train_steps=6, save_last=False)
    words = r"worse was computed at step 4, not for these weights"
    with pytest.warns(UserWarning, match=rf"the adapter folder gets step 6, the best .*step=6.*: {words}"):
        make_trainer(tmp_path, PeraCallback(2), best, max_epochs=2).fit(Rising())
    assert is_of(tmp_path / "adapter", best.best_model_path)
    assert f"(worse 4): {words}" in weights_row(tmp_path / "adapter")


@pytest.mark.filterwarnings("ignore:.*could not find the monitored key:UserWarning")
def test_weights_alone_written_over_the_best_are_named(tmp_path: Path) -> None:
    one_name = {"filename": "one", "enable_version_counter": False, "save_weights_only": True, "save_last": False}
    best, every = rising(tmp_path, **one_name), rising(tmp_path, **one_name, monitor=None, save_top_k=-1)
    module = Rising()
    with pytest.warns(UserWarning, match=r"step 8, .*worse was computed at step 4, not for these weights"):
        make_trainer(tmp_path, PeraCallback(2), best, every, max_epochs=2).fit(module)
    assert is_of(tmp_path / "adapter", module)


def test_the_second_trainer_of_a_module_has_a_best_of_its_own(tmp_path: Path) -> None:
    best, module = rising(tmp_path), Rising()
    make_trainer(tmp_path, PeraCallback(2), best, max_epochs=1).fit(module)
    with pytest.warns(UserWarning, match="it is of another run, whose ModelCheckpoint is used again"):
        make_trainer(tmp_path, PeraCallback(2), best, max_epochs=1).fit(module)
    assert is_of(tmp_path / "adapter", module)
    assert "of step 4, the last one" in weights_row(tmp_path / "adapter")


class Interrupting(pl.Callback):
    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == 6:
            raise KeyboardInterrupt


@pytest.mark.filterwarnings("ignore:.*Detected KeyboardInterrupt:UserWarning")
def test_an_interrupted_run_says_where_its_adapter_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    best = rising(tmp_path)
    with pytest.raises(SystemExit):
        make_trainer(tmp_path, PeraCallback(2), best, Interrupting(), max_epochs=2).fit(Rising())
    assert not (tmp_path / "adapter").exists()
    assert f"has not written {tmp_path / 'adapter'}" in caplog.text
    assert str(best.last_model_path) in caplog.text


def test_the_best_of_another_run_is_not_taken(tmp_path: Path) -> None:
    best = rising(tmp_path)
    make_trainer(tmp_path, PeraCallback(2), best, max_epochs=1).fit(Rising())
    torch.manual_seed(5)
    module = Rising()
    with pytest.warns(UserWarning, match="it is of another run"):
        make_trainer(tmp_path / "second", PeraCallback(2), best, max_epochs=2).fit(module)
    assert is_of(tmp_path / "second/adapter", module)


class Failing(Rising):
    def on_train_epoch_start(self) -> None:
        if self.trainer.current_epoch == 1:
            raise ValueError("a bad row")


def test_a_fit_after_one_that_failed_writes_its_own_steps(tmp_path: Path) -> None:
    callback, best, module = PeraCallback(2), rising(tmp_path), Failing()
    trainer = make_trainer(tmp_path, callback, best, max_epochs=2)
    with pytest.raises(ValueError, match="a bad row"):
        trainer.fit(module)
    assert not (tmp_path / "adapter").exists()
    again = make_trainer(tmp_path, callback, best, max_epochs=1)
    # Its ModelCheckpoint knows the best of the fit that failed, which is as good.
    with pytest.warns(UserWarning, match="it is of another run"):
        again.fit(module)
    assert is_of(tmp_path / "adapter", module)
    assert "of step 4, the last one" in weights_row(tmp_path / "adapter")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"monitor": None}, "of step 8, the last one"),
        ({"monitor": None, "save_top_k": -1}, "of step 8, the last one"),
        ({"monitor": "step", "mode": "max", "every_n_train_steps": 3}, "of step 8, the last one"),
        ({"save_top_k": -1}, "of step 4, the best checkpoint"),
        ({"save_weights_only": True}, "of step 4, the best checkpoint"),
        ({"mode": "max"}, "of step 8, the best checkpoint"),
        ({"monitor": "train_loss", "every_n_train_steps": 2, "mode": "max"}, "the best checkpoint"),
        ({"filename": "best", "enable_version_counter": False}, "of step 4, the best checkpoint"),
    ],
)
def test_the_card_names_what_is_in_the_folder(tmp_path: Path, options: dict[str, Any], told: str) -> None:
    best, module = rising(tmp_path, **{"save_last": False, **options}), Rising()
    make_trainer(tmp_path, PeraCallback(2), best, max_epochs=2).fit(module)
    row = weights_row(tmp_path / "adapter")
    assert told in row
    if "best" in told:
        assert is_of(tmp_path / "adapter", best.best_model_path)
        assert best.best_model_path in row
        assert f"step {torch.load(best.best_model_path)['global_step']}," in row
    else:
        assert is_of(tmp_path / "adapter", module)


def test_of_several_metrics_the_first_decides(tmp_path: Path) -> None:
    first, second = (ModelCheckpoint(tmp_path / mode, monitor="worse", mode=mode) for mode in ("min", "max"))
    make_trainer(tmp_path, PeraCallback(2), first, second, max_epochs=2).fit(Rising())
    assert first.best_model_path in weights_row(tmp_path / "adapter")


@pytest.mark.parametrize("monitored", [True, False])
def test_a_later_step_in_the_file_of_the_best_is_named(tmp_path: Path, monitored: bool) -> None:
    best = rising(tmp_path, filename="model", enable_version_counter=False, save_last=None)
    other = rising(tmp_path, filename="model", enable_version_counter=False, save_last=None, monitor=None)
    every: Any = other if monitored else OverTheBest()
    module = Rising()
    with pytest.warns(UserWarning, match=r"step \d+ has written over it, and the best was step 4"):
        make_trainer(tmp_path, PeraCallback(2), best, every, max_epochs=2).fit(module)
    assert is_of(tmp_path / "adapter", module)
    assert "the last one" in weights_row(tmp_path / "adapter")


class OverTheBest(pl.Callback):
    """Puts every step where the best checkpoint is."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        best = trainer.checkpoint_callback
        if isinstance(best, ModelCheckpoint) and best.best_model_path:
            trainer.save_checkpoint(best.best_model_path)
