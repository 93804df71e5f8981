"""A checkpoint that torch would read without end, or to more than it holds, is refused on every way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from torch.distributed.checkpoint import FileSystemWriter, save

from pera_lightning import PeraCallback
from pera_lightning.checkpoint.training.consolidation import consolidate
from pera_lightning.errors import CheckpointError
from tests.support.callback_fits import make_trainer
from tests.support.models import Regressor
from tests.support.repacked import endless_key, parts_of, with_pickle, write_parts
from tests.support.trainers import SAFE_LOADING


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    trainer = make_trainer(folder, PeraCallback(rank=2), enable_checkpointing=False, max_epochs=1)
    trainer.fit(Regressor())
    trainer.save_checkpoint(folder / "whole.ckpt")
    return folder / "whole.ckpt"


def endless(path: Path) -> None:
    with_pickle(path, endless_key())


def endless_behind_the_end(path: Path) -> None:
    endless(path)
    path.write_bytes(path.read_bytes() + b"PK\x05\x06\0\0")


def compressed_behind_the_end(path: Path) -> None:
    write_parts(path, {**parts_of(path), "archive/data/big": bytes(10**7)}, compressed=True)
    path.write_bytes(path.read_bytes() + b"PK\x05\x06\0\0")


def endless_in_other_letters(path: Path) -> None:
    with_pickle(path, endless_key(), "DATA.PKL")


def old_form(path: Path) -> None:
    torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=False)


def memo_without_end(path: Path) -> None:
    """Python would make room for all numbers below the one that is given."""
    with_pickle(path, b"\x80\x02}r\xff\xff\xff\x7f.")


def holding(value: Callable[[], Any], *keys: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        held = torch.load(path, weights_only=True)
        inner = held
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value()
        torch.save(held, path)

    return write


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "endless": (endless, "without end"),
    "endless, with an end of no archive": (endless_behind_the_end, "behind its end"),
    "compressed, with an end of no archive": (compressed_behind_the_end, "behind its end"),
    "endless, in other letters": (endless_in_other_letters, "torch.save did not write"),
    "of the form before torch 1.6": (old_form, r"(?s)before 1\.6.*torch\.save\(torch\.load"),
    "memo": (memo_without_end, "numbers things"),
    "factor": (holding(lambda: torch.ones(1, 2).expand(10**9, 2), "state_dict", "net.0.pera_B"), "elements, of shape"),
    "further": (holding(lambda: torch.ones(1).expand(2 * 10**9), "state_dict", "net.9"), "elements, of shape"),
    "elsewhere": (holding(lambda: torch.ones(1).expand(10**10), "callbacks", "other"), "elements, of shape"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_on_every_way(whole: Path, tmp_path: Path, name: str) -> None:
    spoil, words = REFUSED[name]
    path = tmp_path / "spoiled.ckpt"
    path.write_bytes(whole.read_bytes())
    spoil(path)
    with pytest.raises(CheckpointError, match=words):
        consolidate(path, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    for command in ("test", "fit"):
        trainer = make_trainer(tmp_path, PeraCallback(rank=2), enable_checkpointing=False)
        with pytest.raises(CheckpointError, match=words):
            getattr(trainer, command)(Regressor(), ckpt_path=path, **SAFE_LOADING)


def test_other_writers_of_the_same_form_are_read(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "whole.ckpt"
    path.write_bytes(whole.read_bytes())
    write_parts(path, parts_of(path))
    consolidate(path, tmp_path / "adapter")
    make_trainer(tmp_path, PeraCallback(rank=2)).test(Regressor(), ckpt_path=path, verbose=False, **SAFE_LOADING)


@pytest.mark.parametrize("name", ["endless", "factor", "of the form before torch 1.6"])
def test_at_a_url(whole: Path, tmp_path: Path, name: str) -> None:
    spoil, words = REFUSED[name]
    path = tmp_path / "spoiled.ckpt"
    path.write_bytes(whole.read_bytes())
    spoil(path)
    fsspec.filesystem("memory").pipe("/archives/spoiled.ckpt", path.read_bytes())
    with pytest.raises(CheckpointError, match=words):
        consolidate("memory://archives/spoiled.ckpt", tmp_path / "adapter")
    trainer = make_trainer(tmp_path, PeraCallback(rank=2))
    with pytest.raises(CheckpointError, match=words):
        trainer.test(Regressor(), ckpt_path="memory://archives/spoiled.ckpt", **SAFE_LOADING)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
# Of torch 2.8, about itself.
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")
@pytest.mark.parametrize("part", ["meta.pt", "__0_0.distcp"])
def test_in_a_folder_of_several_processes(whole: Path, tmp_path: Path, part: str) -> None:
    folder, held = tmp_path / "folder", torch.load(whole, weights_only=True)
    save(
        {f"state_dict.{key}": value for key, value in held.pop("state_dict").items()},
        storage_writer=FileSystemWriter(folder),
        no_dist=True,
    )
    torch.save(held, folder / "meta.pt")
    consolidate(folder, tmp_path / "whole")
    if part == "meta.pt":
        endless(folder / part)
    else:
        # torch itself would call this one, with a storage and a size.
        held = (folder / part).read_bytes()
        (folder / part).write_bytes(
            held.replace(b"torch._utils\n_rebuild_tensor_v2", b"torch\nFloatTensor\n_rebuild_ten_")
        )
    with pytest.raises(CheckpointError, match=r"damaged, or none(.|\n)*" + part):
        consolidate(folder, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
