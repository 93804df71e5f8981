"""What is given to `consolidate` in place of a checkpoint is called what it is, with what to do about it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pera_lightning.checkpoint.training.consolidation import consolidate
from pera_lightning.errors import CheckpointError


def config(kind: str) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        path.mkdir()
        (path / "adapter_config.json").write_text(json.dumps({"peft_type": kind}))

    return write


def checkpoints(path: Path) -> None:
    path.mkdir()
    for name in ("a.ckpt", "b.ckpt"):
        (path / name).touch()


PLACES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "adapter": (config("PERA"), "a PERA adapter's folder", "load_adapter"),
    "LoRA": (config("LORA"), "a LoRA of PEFT", "--pera.init_from"),
    "checkpoints": (checkpoints, "a.ckpt, b.ckpt", "name one of them"),
    "pipe": (os.mkfifo, "a named pipe", "name a file"),
    "empty": (lambda path: path.touch(), "an empty file", "copy it again"),
    "text": (lambda path: path.write_text("a"), "a text file", "correct the path"),
    "nothing": (lambda path: None, "nothing", "correct the path"),
}


@pytest.mark.parametrize("name", PLACES)
def test_what_is_no_checkpoint(tmp_path: Path, name: str) -> None:
    write, what, cure = PLACES[name]
    write(tmp_path / "given")
    with pytest.raises(CheckpointError) as caught:
        consolidate(tmp_path / "given", tmp_path / "out")
    assert what in str(caught.value)
    assert cure in str(caught.value).partition("fix:")[2]
    assert "mmap" not in str(caught.value)
    assert not (tmp_path / "out").exists()
