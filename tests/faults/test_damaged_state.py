"""A damaged checkpoint given to the Trainer ended in KeyError, InvalidVersion or UnicodeDecodeError, or not at all."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pera_lightning import PeraCallback
from pera_lightning.errors import CheckpointError
from tests.support.callback_fits import make_trainer
from tests.support.models import Regressor
from tests.support.trainers import SAFE_LOADING


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damaged")
    trainer = make_trainer(folder, PeraCallback(rank=2), enable_checkpointing=False, max_epochs=1)
    trainer.fit(Regressor())
    trainer.save_checkpoint(folder / "whole.ckpt")
    return folder / "whole.ckpt"


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path, Path], None]:
    def write(whole: Path, path: Path) -> None:
        held = torch.load(whole, weights_only=False)
        change(held)
        torch.save(held, path)

    return write


def cut(whole: Path, path: Path) -> None:
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])


def without_storage(whole: Path, path: Path) -> None:
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
        for info in source.infolist():
            if not info.filename.endswith("/data/0"):
                target.writestr(info, source.read(info))


def random_states(held: dict[str, Any]) -> None:
    held["pera_processes"][0]["random"]["python"][1][0] = -1


def moments(held: dict[str, Any]) -> None:
    state = held["optimizer_states"][0]["state"][0]
    state["exp_avg"] = state["exp_avg"][None]


def compressed(whole: Path, path: Path) -> None:
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for info in source.infolist():
            is_first = info.filename.endswith("/data/0")
            target.writestr(info.filename, bytes(1 << 20) if is_first else source.read(info))


def deep(whole: Path, path: Path) -> None:
    """A key of a dict that is a tuple in a tuple in a tuple ...; to hash it would end the process."""
    pickled = b"\x80\x02}" + b")" + b"\x85" * 200_000 + b"K\x01s."
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
        for info in source.infolist():
            target.writestr(info, pickled if info.filename.endswith("data.pkl") else source.read(info))


DAMAGE = {
    "compressed": compressed,
    "without end": deep,
    "cut off": cut,
    "without a tensor": without_storage,
    "without a version": edited(lambda held: held.pop("pytorch-lightning_version")),
    "a version of another kind": edited(lambda held: held.update({"pytorch-lightning_version": {"a": 1}})),
    "loops of another kind": edited(lambda held: held.update(loops=5)),
    "a count of another kind": edited(
        lambda held: held["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"].update(ready=[3])
    ),
    "no optimizers": edited(lambda held: held.update(optimizer_states=[{}])),
    "callbacks of another kind": edited(lambda held: held.update(callbacks=dict.fromkeys(held["callbacks"], 3))),
    "random states of no generator": edited(random_states),
    "an option of the optimizer": edited(lambda held: held["optimizer_states"][0]["param_groups"][0].update(betas=2)),
    "moments of another shape": edited(moments),
    "a part of the moments": edited(lambda held: held["optimizer_states"][0]["state"][0].pop("exp_avg")),
    "no step": edited(lambda held: held["optimizer_states"][0]["state"][0].update(step=torch.zeros(0))),
    "a pipe": lambda whole, path: os.mkfifo(path),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_error_names_the_file(checkpoint: Path, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "damaged.ckpt"
    DAMAGE[damage](checkpoint, path)
    trainer = make_trainer(tmp_path, PeraCallback(rank=2), enable_checkpointing=False)
    with pytest.raises(CheckpointError, match=r"damaged\.ckpt"):
        trainer.fit(Regressor(), ckpt_path=path, **SAFE_LOADING)


@pytest.mark.parametrize("is_link", [False, True])
def test_a_missing_file_is_named_too(tmp_path: Path, is_link: bool) -> None:
    path = tmp_path / "none.ckpt"
    if is_link:
        path.symlink_to("elsewhere.ckpt")
    with pytest.raises(CheckpointError, match=r"no checkpoint of a Trainer here(.|\n)*none\.ckpt"):
        make_trainer(tmp_path, PeraCallback(rank=2)).fit(Regressor(), ckpt_path=path, **SAFE_LOADING)


class WithMomentum(Regressor):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([value for value in self.parameters() if value.requires_grad], lr=0.01, momentum=0.9)


def test_the_state_of_another_optimizer(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"another optimizer: it has no '.*' for SGD"):
        make_trainer(tmp_path, PeraCallback(rank=2)).fit(WithMomentum(), ckpt_path=checkpoint, **SAFE_LOADING)


class LooksElsewhere(Regressor):
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        Path("their_file").read_text()


def test_a_file_that_the_module_misses_is_not_called_the_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot restore its state(.|\n)*FileNotFoundError.*their_file"):
        make_trainer(tmp_path, PeraCallback(rank=2)).fit(LooksElsewhere(), ckpt_path=checkpoint, **SAFE_LOADING)


def test_the_trainer_is_left_as_it_was(checkpoint: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, PeraCallback(rank=2), enable_checkpointing=False, max_epochs=2)
    trainer.fit(Regressor(), ckpt_path=checkpoint, **SAFE_LOADING)
    assert not vars(trainer._checkpoint_connector).keys() & {"_restore_modules_and_callbacks", "restore_training_state"}
