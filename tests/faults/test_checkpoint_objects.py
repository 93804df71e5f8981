"""Objects in a checkpoint (hyperparameters) kept its adapter from being read; nothing that it names may be called."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import enum
import functools
import logging
import os
import pickle
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import fsspec
import jsonargparse
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.data import AttributeDict

from pera_lightning import PeraCallback
from pera_lightning.checkpoint.training.consolidation import consolidate
from pera_lightning.checkpoint.training.training_checkpoint import read_checkpoint
from pera_lightning.checkpoint.training.without_objects import load_without_objects
from pera_lightning.errors import CheckpointError
from tests.support.callback_fits import make_trainer
from tests.support.hostile_checkpoints import Touch
from tests.support.models import Regressor
from tests.support.rising import Rising, factors, is_of, rising, weights_row
from tests.support.trainers import SAFE_LOADING

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")


class Colour(enum.Enum):
    RED = "red"


class Pair(NamedTuple):
    first: int
    second: int


class Words(list[str]):
    pass


class Outer:
    class Inner:
        def __init__(self) -> None:
            self.value = 1


@dataclasses.dataclass
class Options:
    folder: Path
    colour: Colour


def scaled(value: float) -> float:
    return 2 * value


OBJECTS = {
    "path": Path("somewhere"),
    "enum": Colour.RED,
    "numpy number": np.float64(0.5),
    "numpy array": np.arange(3),
    "dataclass": Options(Path("somewhere"), Colour.RED),
    "namespace": argparse.Namespace(a=1),
    "jsonargparse": jsonargparse.Namespace(a=jsonargparse.Namespace(b=Path("x"))),
    "date": datetime.timedelta(days=1),
    "dtype": torch.bfloat16,
    "device": torch.device("cpu"),
    "function": scaled,
    "partial": functools.partial(scaled, 2.0),
    "class": Regressor,
    "tuple": Pair(1, 2),
    "dict subclass": AttributeDict(a=AttributeDict(b=1)),
    "default dict": defaultdict(list, a=[1]),
    "list subclass": Words(["a"]),
    "object of a nested class": Outer.Inner(),
    "method": "text".upper,
    "nested": [{"a": (Path("x"), {Colour.RED: [Pair(1, 2)]})}],
    "float8": torch.zeros(2, 2).to(torch.float8_e4m3fn),
    "set": {1, 2},
    "bytes": b"\x00\xff",
    "generator": np.random.default_rng(0),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_objects_in_the_hyperparameters_do_not_hide_the_best_checkpoint(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    best, module = rising(tmp_path, save_last=False), Rising(thing=OBJECTS[name])
    with caplog.at_level(logging.INFO):
        make_trainer(tmp_path, PeraCallback(2), best, max_epochs=2).fit(module)
    assert best.best_model_path.endswith("epoch=0-step=4.ckpt")
    assert is_of(tmp_path / "adapter", best.best_model_path)
    assert not is_of(tmp_path / "adapter", module)
    for told in (weights_row(tmp_path / "adapter"), caplog.text):
        assert f"of step 4, the best checkpoint {best.best_model_path} (worse 4)" in told
    again = consolidate(best.best_model_path, tmp_path / "again")
    assert factors(Path(again)).keys() == factors(tmp_path / "adapter").keys()


def test_nothing_that_a_checkpoint_names_is_called(tmp_path: Path) -> None:
    mark, file = tmp_path / "called", tmp_path / "file.ckpt"
    tensors = {"a": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16)}
    torch.save({"state_dict": tensors, "global_step": 7, "hyper_parameters": {"evil": Touch(mark)}}, file)
    held = read_checkpoint(file)
    assert held.step == 7
    assert held.shapes == {"a": (2, 3), "b": (4,)}
    assert all(torch.equal(value, tensors[key]) for key, value in held.tensors().items())
    assert not mark.exists()
    torch.load(file, weights_only=False)
    assert mark.exists()


def test_files_that_are_no_checkpoint_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pickle").write_bytes(pickle.dumps({"a": Touch(tmp_path / "called")}))
    with zipfile.ZipFile(tmp_path / "program", "w") as archive:
        archive.writestr("program/constants.pkl", b"")
    for name, words in (("pickle", "no archive"), ("program", "TorchScript")):
        with (tmp_path / name).open("rb") as file, pytest.raises(CheckpointError, match=words):
            load_without_objects(file)
        with pytest.raises(CheckpointError, match="damaged"):
            read_checkpoint(tmp_path / name)
    assert not (tmp_path / "called").exists()


def test_going_on_from_a_checkpoint_with_objects_names_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = rising(tmp_path)
    make_trainer(tmp_path, PeraCallback(2), best, max_epochs=1).fit(Rising(thing=Path("x")))
    for run in (pl.Trainer.fit, pl.Trainer.validate):
        trainer = make_trainer(tmp_path, PeraCallback(2), rising(tmp_path), max_epochs=2)
        with pytest.raises(CheckpointError, match=r"(?s)pathlib.*\.PosixPath.*weights_only=False"):
            run(trainer, Rising(thing=Path("x")), ckpt_path=best.last_model_path)
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    allowed = {"weights_only": False} if SAFE_LOADING else {}
    if not allowed:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    make_trainer(tmp_path, PeraCallback(2), rising(tmp_path), max_epochs=2).fit(
        Rising(thing=Path("x")), ckpt_path=best.last_model_path, **allowed
    )


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose files are at `http://127.0.0.1:PORT/`, where Lightning lets files make objects."""
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=folder)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        (folder / "port").write_text(str(server.server_port))
        yield folder
        server.shutdown()


def address(where: str, file: Path) -> str:
    """Where a checkpoint is found: as a file, at its URL, on another file system."""
    if where == "http":
        return f"http://127.0.0.1:{(file.parent / 'port').read_text()}/{file.name}"
    if where == "memory":
        fsspec.filesystem("memory").pipe("/checkpoints/hostile.ckpt", file.read_bytes())
        return "memory://checkpoints/hostile.ckpt"
    return str(file)


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize("where", ["file", "http", "memory"])
def test_nothing_is_called_where_lightning_loads(tmp_path: Path, served: Path, where: str, command: str) -> None:
    best, mark = rising(tmp_path), tmp_path / "called"
    make_trainer(tmp_path, PeraCallback(2), best, max_epochs=1).fit(Rising())
    held = torch.load(best.last_model_path, weights_only=True)
    torch.save(held | {"hyper_parameters": {"a": Touch(mark)}}, served / "hostile.ckpt")
    path = address(where, served / "hostile.ckpt")
    trainer = make_trainer(tmp_path, PeraCallback(2), max_epochs=2)
    with pytest.raises(CheckpointError, match="objects beside tensors"):
        getattr(trainer, command)(Rising(), ckpt_path=path)
    assert not mark.exists()


def test_lightning_itself_would_call_it(tmp_path: Path, served: Path) -> None:
    """So the files of these tests are what they are meant to be."""
    mark = tmp_path / "called"
    held = {"state_dict": Regressor().state_dict(), "pytorch-lightning_version": pl.__version__, "a": Touch(mark)}
    torch.save(held, served / "hostile.ckpt")
    Regressor.load_from_checkpoint(address("http", served / "hostile.ckpt"))
    assert mark.exists()
