"""A file that is no checkpoint is called what it is; safe loading is to be switched off for one's own classes alone."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pera_lightning import PeraCallback
from pera_lightning.checkpoint.training.consolidation import consolidate
from pera_lightning.errors import CheckpointError
from tests.support.callback_fits import make_trainer
from tests.support.models import Regressor
from tests.support.repacked import with_pickle
from tests.support.trainers import SAFE_LOADING

ADVICE = ("weights_only=False", "weights_only", "add_safe_globals", "NO_WEIGHTS_ONLY", "mmap", "torch.save")


def refused(tmp_path: Path, path: Path, command: str = "fit") -> str:
    trainer = make_trainer(tmp_path, PeraCallback(rank=2), enable_checkpointing=False)
    with pytest.raises(CheckpointError) as caught:
        getattr(trainer, command)(Regressor(), ckpt_path=path, **SAFE_LOADING)
    return str(caught.value)


NO_CHECKPOINTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "safetensors": (lambda path: save_file({"a": torch.ones(2)}, path), "a safetensors file"),
    "json": (lambda path: path.write_text('{"a": 1}'), "a JSON file"),
    "html": (lambda path: path.write_text("<!doctype html><html>404</html>"), "an HTML page"),
    "git-lfs": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "random bytes": (lambda path: path.write_bytes(bytes(range(255, 0, -1)) * 9), "no form"),
    "zeros": (lambda path: path.write_bytes(bytes(4096)), "begins with zeros"),
    "empty": (lambda path: path.write_bytes(b""), "an empty file"),
    "text": (lambda path: path.write_text("hello world\n"), "a text file"),
}


@pytest.mark.parametrize("name", NO_CHECKPOINTS)
def test_files_without_objects(tmp_path: Path, name: str) -> None:
    write, words = NO_CHECKPOINTS[name]
    write(tmp_path / "file.ckpt")
    with pytest.raises(CheckpointError) as caught:
        consolidate(tmp_path / "file.ckpt", tmp_path / "adapter")
    for message in (str(caught.value), *(refused(tmp_path, tmp_path / "file.ckpt", name) for name in ("fit", "test"))):
        assert words in message
        assert "file.ckpt" in message
        assert not [advice for advice in ADVICE[:-1] if advice in message]


class Calls:
    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("function", [os.system, subprocess.Popen, eval, getattr, shutil.rmtree, torch.load])
def test_functions(tmp_path: Path, function: Any) -> None:
    path = tmp_path / "file.ckpt"
    torch.save({"state_dict": {}, "hyper_parameters": Calls(function, "none")}, path)
    message = refused(tmp_path, path)
    assert f".{function.__name__}" in message
    assert "do not load it as it is" in message
    assert "consolidate" in message
    assert not [advice for advice in ADVICE if advice in message]


def test_a_file_that_only_torch_refuses(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "file.ckpt")
    with_pickle(tmp_path / "file.ckpt", b"\x80\x02I1\n.")
    message = refused(tmp_path, tmp_path / "file.ckpt")
    assert "it is damaged, or none" in message
    assert "Unsupported operand" in message
    assert not [advice for advice in ADVICE if advice in message]
