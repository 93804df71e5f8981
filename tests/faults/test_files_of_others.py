"""A fit and `consolidate` replaced a project's README.md, and a failed `consolidate` the adapter that was there."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pera_lightning import PeraCallback
from pera_lightning.checkpoint.training.consolidation import consolidate
from pera_lightning.errors import CheckpointError, ConfigError, FolderError, PeraError
from tests.support.callback_fits import make_trainer
from tests.support.models import Regressor


class Counting(Regressor):
    """Counts its steps."""

    steps = 0

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.steps += 1
        return super().training_step(batch, batch_idx)


def fit(folder: Path, module: Regressor, place: str | None, **options: Any) -> Any:
    options = {"enable_checkpointing": False, "max_epochs": 1, **options}
    trainer = make_trainer(folder, PeraCallback(2, adapter_dir=place), **options)
    trainer.fit(module)
    return trainer


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_project_is_refused_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project/README.md").write_text("mine")
    monkeypatch.chdir(tmp_path / "project")
    module = Counting()
    with pytest.raises(ConfigError, match=r"(?s)not ours.*'README.md'.*name another folder with .*adapter_dir$"):
        fit(tmp_path / "runs", module, ".")
    assert module.steps == 0
    assert content(tmp_path / "project") == {"README.md": b"mine"}


def test_the_folder_of_the_base_is_refused_before_the_first_step(tmp_path: Path) -> None:
    module = Counting()
    module.config = type("Config", (), {"_name_or_path": str(tmp_path / "base")})()
    (tmp_path / "base").mkdir()
    with pytest.raises(FolderError, match="folder of its base model"):
        fit(tmp_path, module, str(tmp_path / "base"))
    assert module.steps == 0


def test_runs_in_one_folder_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one ends before it writes its adapter; the others replace it, beside the checkpoints."""
    monkeypatch.chdir(tmp_path)
    options = {"enable_checkpointing": True, "logger": True}
    with pytest.raises(RuntimeError, match="ended"):
        fit(tmp_path, Ending(), ".", **options)
    assert (tmp_path / "lightning_logs").is_dir()
    for _ in range(2):
        fit(tmp_path, Counting(), ".", **options)
        (tmp_path / "notes.txt").write_text("mine")
    assert (tmp_path / "adapter_config.json").is_file()
    assert (tmp_path / "notes.txt").read_text() == "mine"


class Ending(Counting):
    """Does not come to the end of its fit."""

    def on_train_epoch_end(self) -> None:
        self.trainer.save_checkpoint("last.ckpt")
        raise RuntimeError("ended")


def test_what_comes_into_the_folder_during_the_fit_stays(tmp_path: Path) -> None:
    class Noting(Counting):
        def on_train_end(self) -> None:
            (tmp_path / "wanted").mkdir()
            (tmp_path / "wanted" / self.name).write_text("mine")

        name = "notes.txt"

    fit(tmp_path, Noting(), str(tmp_path / "wanted"))
    assert (tmp_path / "wanted/adapter_config.json").is_file()
    assert (tmp_path / "wanted/notes.txt").read_text() == "mine"


def test_where_neither_the_root_nor_the_working_directory_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Spoiling(Counting):
        def on_train_end(self) -> None:
            (tmp_path / "gone").rmdir()
            (tmp_path / "root").rmdir()
            for name in ("root", "wanted"):
                (tmp_path / name).write_text("mine")

    for name in ("gone", "root", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    with pytest.raises(PeraError, match=r"(?s)it is in another one.*temporary/adapter-"):
        fit(tmp_path / "root", Spoiling(), str(tmp_path / "wanted"))
    assert len(list(tmp_path.glob("temporary/adapter-*/adapter_config.json"))) == 1
    assert content(tmp_path)["wanted"] == b"mine"


def test_but_nothing_of_our_names_is_replaced(tmp_path: Path) -> None:
    class Writing(Counting):
        def on_train_end(self) -> None:
            (tmp_path / "wanted").mkdir()
            (tmp_path / "wanted/README.md").write_text("mine")

    with pytest.raises(PeraError, match=r"(?s)it is in another one.*not ours.*load the adapter of step"):
        fit(tmp_path, Writing(), str(tmp_path / "wanted"))
    assert content(tmp_path / "wanted") == {"README.md": b"mine"}
    assert len(list(tmp_path.glob("adapter-*/adapter_config.json"))) == 1


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    trainer = fit(tmp_path, Regressor(), None)
    trainer.save_checkpoint(tmp_path / "good.ckpt")
    return tmp_path / "good.ckpt"


def test_consolidate_asks_before_it_reads(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/README.md").write_text("mine")
    for source in (checkpoint, tmp_path / "none.ckpt"):
        with pytest.raises(FolderError, match=r"(?s)not ours.*--overwrite true"):
            consolidate(source, tmp_path / "out")
    assert content(tmp_path / "out") == {"README.md": b"mine"}
    command = [sys.executable, "-m", "pera_lightning", "consolidate", "--checkpoint", str(checkpoint), "--out", "out"]
    subprocess.run([*command, "--overwrite", "true"], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "out/README.md").read_text() != "mine"


def without(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda held: held["state_dict"].pop(key)


def instead(key: str, value: Tensor) -> Callable[[dict[str, Any]], None]:
    return lambda held: held["state_dict"].update({key: value})


SPOILED = {
    "no B": without("net.0.pera_B"),
    "a number for A": instead("net.0.pera_A", torch.tensor(1.0)),
    "a row for B": instead("net.0.pera_B", torch.ones(2)),
    "zeros": instead("net.0.pera_A", torch.zeros(2, 6)),
}


@pytest.mark.parametrize("name", SPOILED)
def test_consolidate_checks_all_before_it_replaces_anything(name: str, tmp_path: Path, checkpoint: Path) -> None:
    consolidate(checkpoint, tmp_path / "out")
    before = content(tmp_path / "out")
    held = torch.load(checkpoint, weights_only=True)
    SPOILED[name](held)
    if name == "zeros":
        held["state_dict"]["net.0.pera_B"].zero_()
    torch.save(held, tmp_path / "bad.ckpt")
    with pytest.raises(CheckpointError, match=r"part of the adapter is not in the checkpoint"):
        consolidate(tmp_path / "bad.ckpt", tmp_path / "out")
    assert content(tmp_path / "out") == before


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT])
def test_consolidate_where_the_system_refuses(
    number: int, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    consolidate(checkpoint, tmp_path / "out")
    before = content(tmp_path)

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", refuse)
    for folder in ("out", "new"):
        with pytest.raises(
            FolderError, match=rf"(?s){folder}.*{os.strerror(number)}.*with room for \d+ bytes"
        ) as error:
            consolidate(checkpoint, tmp_path / folder)
        assert type(pickle.loads(pickle.dumps(error.value))) is FolderError
    assert content(tmp_path) == before
