"""A state of ModelCheckpoint in a checkpoint could name any folder, which was removed when the next one was written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from pera_lightning import PeraCallback
from pera_lightning.callback.resume.restored_callbacks import callback_problem
from pera_lightning.errors import CheckpointError
from tests.support.callback_fits import make_trainer
from tests.support.models import Regressor
from tests.support.trainers import SAFE_LOADING

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")


def callbacks(folder: Path) -> tuple[ModelCheckpoint, EarlyStopping]:
    saving = ModelCheckpoint(folder / "kept", monitor="val_loss", save_last=True)
    return saving, EarlyStopping("val_loss", patience=50)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    make_trainer(folder, PeraCallback(rank=2), *callbacks(folder), max_epochs=2).fit(Regressor())
    return folder


def held(run: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """A checkpoint, and in it the states of ModelCheckpoint and EarlyStopping."""
    checkpoint = torch.load(run / "kept" / "last.ckpt", weights_only=True)
    states = checkpoint["callbacks"]
    saving, stopping = (next(key for key in states if key.startswith(kind)) for kind in ("ModelC", "EarlyS"))
    return checkpoint, states[saving], states[stopping]


def resume(run: Path, checkpoint: dict[str, Any], folder: Path) -> pl.Trainer:
    torch.save(checkpoint, folder / "changed.ckpt")
    trainer = make_trainer(folder, PeraCallback(rank=2), *callbacks(run), max_epochs=3)
    trainer.fit(Regressor(), ckpt_path=folder / "changed.ckpt", **SAFE_LOADING)
    return trainer


def through_dots(run: Path) -> str:
    return str(run / "kept" / ".." / "victim.ckpt")


def through_a_link(run: Path) -> str:
    if not (run / "kept" / "link").is_symlink():
        (run / "kept" / "link").symlink_to(run)
    return str(run / "kept" / "link" / "victim.ckpt")


VICTIMS: dict[str, Callable[[Path], str]] = {
    "dots": through_dots,
    "link": through_a_link,
    "a URL": lambda run: "memory://victim/victim.ckpt",
    "a URL of the local file system": lambda run: f"local://{run}/victim.ckpt",
    "the folder": lambda run: f"{run / 'kept'}",
    "what is no checkpoint": lambda run: f"{run / 'kept' / 'notes.txt'}",
}


@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize("dirpath", [None, "same", "/"])
def test_nothing_outside_of_the_folder_is_removed(run: Path, tmp_path: Path, victim: str, dirpath: str | None) -> None:
    (run / "victim.ckpt").mkdir(exist_ok=True)
    (run / "victim.ckpt" / "precious").write_text("mine")
    checkpoint, state, _ = held(run)
    path, worst = VICTIMS[victim](run), torch.tensor(1e9)
    state.update(best_k_models={path: worst}, kth_best_model_path=path, best_model_path=path, last_model_path=path)
    state.update(kth_value=worst, best_model_score=worst, dirpath=dirpath)
    if dirpath != "/":
        state["dirpath"] = str(run / "kept")
    if dirpath is None:
        del state["dirpath"]
    with pytest.raises(CheckpointError, match=r"changed\.ckpt: the state of ModelCheckpoint: \w+_path is"):
        resume(run, checkpoint, tmp_path)
    assert (run / "victim.ckpt" / "precious").exists()


NO_TEXT: tuple[Any, ...] = (None, -1, [], {}, float("nan"), torch.ones(2), "x", 1 << 70)
NO_SCORE: tuple[Any, ...] = ("x", [], {}, float("nan"), torch.ones(2), torch.ones((), device="meta"))
NO_COUNT: tuple[Any, ...] = ("x", None, -1, 1 << 70, 2.5, True, torch.ones(()))
WRONG = {
    "ModelCheckpoint": {
        **dict.fromkeys(("best_model_path", "kth_best_model_path", "last_model_path"), NO_TEXT),
        **dict.fromkeys(("best_model_score", "current_score", "kth_value"), NO_SCORE),
        "best_k_models": ("x", None, [], 5, torch.ones(2), {"x": torch.ones(())}, {1: 2}),
        "dirpath": (None, 5, []),
    },
    "EarlyStopping": {
        **dict.fromkeys(("wait_count", "stopped_epoch", "patience"), NO_COUNT),
        "best_score": (*NO_SCORE, None, -1, 0.5),
    },
}


@pytest.fixture
def trainer(run: Path) -> pl.Trainer:
    """One whose callbacks know their folders."""
    trainer = make_trainer(run, *callbacks(run))
    for callback in trainer.callbacks:
        callback.setup(trainer, Regressor(), "fit")
    return trainer


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in WRONG.items() for name in names])
def test_values_of_other_types_are_named(run: Path, trainer: pl.Trainer, kind: str, name: str) -> None:
    for value in WRONG[kind][name]:
        checkpoint, *states = held(run)
        states[kind == "EarlyStopping"][name] = value
        assert f"the state of {kind}: {name} is" in str(callback_problem(trainer, checkpoint["callbacks"])), value


@pytest.mark.parametrize("name", ["best_model_path", "best_model_score", "kth_best_model_path", "best_score"])
def test_what_is_missing_is_named(run: Path, trainer: pl.Trainer, name: str) -> None:
    checkpoint, *states = held(run)
    del next(state for state in states if name in state)[name]
    assert name in str(callback_problem(trainer, checkpoint["callbacks"]))


def test_a_run_goes_on(run: Path, tmp_path: Path) -> None:
    checkpoint, state, _ = held(run)
    trainer = resume(run, checkpoint, tmp_path)
    assert isinstance(trainer.checkpoint_callback, ModelCheckpoint)
    assert trainer.checkpoint_callback.best_model_path in trainer.checkpoint_callback.best_k_models
    assert not (run / "kept" / Path(state["best_model_path"]).name).exists(), "Lightning removes its own"


def test_a_moved_run_goes_on(run: Path, tmp_path: Path, trainer: pl.Trainer) -> None:
    checkpoint, state, _ = held(run)
    (moved, _), states = callbacks(tmp_path), checkpoint["callbacks"]
    trainer.callbacks[0] = moved
    assert callback_problem(trainer, states) is None
    # Before it has saved, its own state holds the best path of the earlier folder.
    with pytest.warns(UserWarning, match="dirpath has changed"):
        moved.load_state_dict(state)
    state.update(moved.state_dict())
    assert state["best_model_path"].startswith(str(run))
    assert callback_problem(trainer, states) is None
