"""An adapter folder that cannot be written was found out after the last step, and the adapter was lost."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from pera_lightning import PeraCallback, load_adapter
from pera_lightning.errors import AdapterFileError, ConfigError
from tests.support.callback_fits import make_trainer
from tests.support.models import Regressor
from tests.support.trainers import cpu_trainer


class Counting(Regressor):
    """Counts its steps, and does something after the last one."""

    def __init__(self, at_the_end: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self.steps = 0
        self.at_the_end = at_the_end

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.steps += 1
        return super().training_step(batch, batch_idx)

    def on_train_end(self) -> None:
        self.at_the_end()


def fit(folder: Path, module: pl.LightningModule, place: Path | str | None, **options: object) -> None:
    callback = PeraCallback(2, adapter_dir=None if place is None else str(place))
    make_trainer(folder, callback, enable_checkpointing=False, max_epochs=1, **options).fit(module)


def file_in_the_way(folder: Path) -> Path:
    (folder / "file").touch()
    return folder / "file"


def below_a_file(folder: Path) -> Path:
    return file_in_the_way(folder) / "adapter"


def link_to_nothing(folder: Path) -> Path:
    (folder / "link").symlink_to(folder / "nowhere")
    return folder / "link"


def folder_where_a_file_belongs(folder: Path) -> Path:
    (folder / "adapter/adapter_model.safetensors").mkdir(parents=True)
    return folder / "adapter"


def where_nobody_writes(folder: Path) -> Path:
    if not sys.platform.startswith("linux"):
        pytest.skip("there is no /proc")
    return Path("/proc/adapter")


def below_a_read_only_one(folder: Path) -> Path:
    if not sys.platform.startswith("linux"):
        pytest.skip("there is no /sys")
    return Path("/sys/kernel/new/adapter")


PLACES = [
    file_in_the_way,
    below_a_file,
    link_to_nothing,
    folder_where_a_file_belongs,
    where_nobody_writes,
    below_a_read_only_one,
]


@pytest.mark.parametrize("place", PLACES)
def test_a_place_where_nothing_can_be_written_is_refused_before_the_first_step(
    tmp_path: Path, place: Callable[[Path], Path]
) -> None:
    module = Counting()
    with pytest.raises(ConfigError, match=r"(?s)adapter_dir"):
        fit(tmp_path, module, place(tmp_path))
    assert module.steps == 0


@pytest.mark.parametrize("place", ["a\0b", 5, b"folder", ["folder"]])
def test_what_is_no_path_is_refused_when_the_callback_is_made(place: Any) -> None:
    with pytest.raises(ConfigError, match="no path"):
        PeraCallback(2, adapter_dir=place)


def test_the_users_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    fit(tmp_path, Counting(), "~/mine")
    assert (tmp_path / "mine" / "adapter_config.json").is_file()
    assert not (tmp_path / "~").exists()


def test_a_fit_that_changes_its_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    fit(tmp_path, Counting(lambda: os.chdir(tmp_path / "elsewhere")), "mine")
    assert (tmp_path / "mine" / "adapter_config.json").is_file()


def test_so_is_the_default_place(tmp_path: Path) -> None:
    (tmp_path / "adapter").touch()
    module = Counting()
    with pytest.raises(ConfigError, match="which is a file"):
        fit(tmp_path, module, None)
    assert module.steps == 0
    fit(tmp_path, module, None, fast_dev_run=True)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EDQUOT, errno.ENOSPC, errno.EIO])
def test_whatever_the_system_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(**options: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    module = Counting()
    with pytest.raises(ConfigError, match=os.strerror(number)):
        fit(tmp_path, module, tmp_path / "new")
    assert module.steps == 0
    assert not (tmp_path / "new").exists()


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file that this process writes can be larger: as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system cannot reserve room")
def test_no_room_is_found_out_before_the_first_step(tmp_path: Path) -> None:
    module = Counting()
    with largest_file(1 << 19), pytest.raises(ConfigError, match=r"(?s)File too large.*with room for 1\.0 MB"):
        fit(tmp_path, module, tmp_path / "new")
    assert module.steps == 0


def test_a_full_file_system(tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], check=False)
    if mounted.returncode:
        pytest.skip("mounting is not allowed")
    try:
        with pytest.raises(ConfigError, match="No space left on device"):
            fit(tmp_path, Counting(), tmp_path / "adapter")
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_the_adapter_of_an_earlier_fit_stays(tmp_path: Path) -> None:
    fit(tmp_path, Regressor(), tmp_path / "adapter")
    before = {path: path.read_bytes() for path in (tmp_path / "adapter").iterdir()}
    with largest_file(1 << 19), pytest.raises(ConfigError):
        fit(tmp_path, Regressor(), tmp_path / "adapter")
    assert {path: path.read_bytes() for path in (tmp_path / "adapter").iterdir()} == before


def rescued(folder: Path) -> Path:
    (found,) = folder.glob("adapter-*")
    return found


def holds(folder: Path, module: Regressor) -> bool:
    loaded = Regressor()
    load_adapter(loaded, folder)
    return all(torch.equal(value, dict(module.named_parameters())[key]) for key, value in loaded.named_parameters())


@pytest.mark.parametrize("kept", ["root", "working directory", "temporary"])
def test_what_cannot_be_written_in_the_end_is_written_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    places = {name: tmp_path / name for name in ("root", "working directory", "temporary", "wanted")}
    for path in places.values():
        path.mkdir()
    monkeypatch.chdir(places["working directory"])
    monkeypatch.setattr(tempfile, "tempdir", str(places["temporary"]))
    lost = list(places)[: list(places).index(kept)]

    def fill() -> None:
        for name in [*lost, "wanted"]:
            places[name].rename(places[name].with_name(f"{name} was here"))
            places[name].touch()

    if "working directory" in lost:
        monkeypatch.setattr(Path, "cwd", lambda: places["working directory"])
    module = Counting(fill)
    with pytest.raises(AdapterFileError, match="adapter of step 4, the last one") as error:
        fit(places["root"], module, places["wanted"] / "adapter")
    folder = rescued(places[kept])
    assert str(folder) in str(error.value)
    assert str(places["wanted"] / "adapter") in str(error.value)
    assert holds(folder, module)


def test_a_rescue_replaces_nothing(tmp_path: Path) -> None:
    def fill() -> None:
        (tmp_path / "wanted").touch()

    for _ in range(2):
        with pytest.raises(AdapterFileError, match="in another one"):
            fit(tmp_path, Counting(fill), tmp_path / "wanted/adapter")
        (tmp_path / "wanted").unlink()
    assert len(list(tmp_path.glob("adapter-*"))) == 2


def test_nowhere_to_write_says_what_is_left(tmp_path: Path) -> None:
    limits: list[object] = []

    def no_room() -> None:
        limits.append(largest_file(100))
        limits[0].__enter__()  # type: ignore[attr-defined]

    try:
        with pytest.raises(AdapterFileError, match=r"(?s)cannot be written.*consolidate.*save_adapter"):
            fit(tmp_path, Counting(no_room), tmp_path / "adapter")
    finally:
        limits[0].__exit__(None, None, None)  # type: ignore[attr-defined]
    assert not list(tmp_path.glob("adapter-*"))


def test_the_best_checkpoint_is_rescued_too(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path / "checkpoints", monitor="val_loss", mode="max")
    module = Counting(lambda: (tmp_path / "wanted").touch())
    trainer = make_trainer(tmp_path, PeraCallback(2, adapter_dir=str(tmp_path / "wanted/adapter")), best)
    with pytest.raises(AdapterFileError, match="of step 4, the best checkpoint"):
        trainer.fit(module)
    held = torch.load(best.best_model_path)["state_dict"]
    loaded = Regressor()
    load_adapter(loaded, rescued(tmp_path))
    assert all(torch.equal(dict(loaded.named_parameters())[key], value) for key, value in held.items())


def test_processes_end_together(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    trainer = cpu_trainer(
        tmp_path, PeraCallback(2, adapter_dir=str(tmp_path / "file/adapter")), processes=2, enable_checkpointing=False
    )
    with pytest.raises(Exception, match="which is a file"):
        trainer.fit(Regressor())


class Refusing(fsspec.get_filesystem_class("memory")):  # type: ignore[misc]
    """A bucket without credentials, or with some that may only read."""

    protocol = "refusing"
    store: ClassVar[dict[str, object]] = {}

    def _open(self, path: str, mode: str = "rb", **options: object) -> object:
        if "w" in mode:
            raise RuntimeError("Unable to locate credentials")
        return super()._open(path, mode, **options)


def test_remote_places_are_tried_before_too(tmp_path: Path) -> None:
    fsspec.register_implementation("refusing", Refusing, clobber=True)
    for url, words in (
        ("refusing://bucket/adapter", "Unable to locate credentials"),
        ("nosuch://bucket/adapter", "Protocol not known"),
        ("http://localhost:1/adapter", "Nothing can be written there"),
    ):
        module = Counting()
        with pytest.raises(ConfigError, match=words):
            fit(tmp_path, module, url)
        assert module.steps == 0


def test_a_remote_place_that_fails_in_the_end_is_replaced_by_a_local_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec.register_implementation("refusing", Refusing, clobber=True)
    with monkeypatch.context() as patch:
        patch.setattr(Refusing, "_open", fsspec.get_filesystem_class("memory")._open)
        module = Counting(patch.undo)
        with pytest.raises(AdapterFileError, match=r"(?s)refusing://bucket/adapter: RuntimeError"):
            fit(tmp_path, module, "refusing://bucket/adapter")
    assert holds(rescued(tmp_path), module)
