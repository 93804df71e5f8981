"""Checkpoints that lack a part, and what is none at all: a run went on without a word, or was told of another cause."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pera_lightning import PeraCallback, save_adapter
from pera_lightning.errors import CheckpointError
from tests.support.callback_fits import make_trainer
from tests.support.models import Regressor
from tests.support.trainers import SAFE_LOADING


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a whole checkpoint and an adapter."""
    folder = tmp_path_factory.mktemp("run")
    trainer = make_trainer(folder, PeraCallback(rank=2), enable_checkpointing=False, max_epochs=1)
    trainer.fit(Regressor())
    trainer.save_checkpoint(folder / "checkpoints" / "whole.ckpt")
    save_adapter(trainer.lightning_module, folder / "given")
    return folder


def go_on(folder: Path, path: Path, **options: Any) -> None:
    trainer = make_trainer(folder, PeraCallback(rank=2), enable_checkpointing=False, **options)
    trainer.fit(Regressor(), ckpt_path=path, **SAFE_LOADING)


def without(run: Path, folder: Path, **parts: Any) -> Path:
    held = torch.load(run / "checkpoints" / "whole.ckpt", weights_only=True)
    for name, value in parts.items():
        held.pop(name)
        if value is not None:
            held[name] = value
    torch.save(held, folder / "emptied.ckpt")
    return folder / "emptied.ckpt"


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"optimizer_states": []}, "it holds 0 states of optimizers, and the run has 1"),
        ({"callbacks": None}, "does not say on what base"),
        ({"callbacks": {}}, "does not say on what base"),
        ({"loops": None}, r"emptied\.ckpt: it has no part 'loops'$"),
        ({"loops": {}}, "its part 'loops' has no 'fit_loop'"),
    ],
)
def test_a_fit_needs_all_parts(run: Path, tmp_path: Path, parts: dict[str, Any], words: str) -> None:
    path = without(run, tmp_path, **parts)
    with pytest.raises(CheckpointError, match=f"(?m){words}"):
        go_on(tmp_path, path)


def test_a_validation_does_without_the_state_of_callbacks(run: Path, tmp_path: Path) -> None:
    path = without(run, tmp_path, callbacks=None)
    trainer = make_trainer(tmp_path, PeraCallback(rank=2))
    trainer.validate(Regressor(), ckpt_path=path, verbose=False, **SAFE_LOADING)


def test_what_will_differ_is_said(run: Path, tmp_path: Path) -> None:
    path = without(run, tmp_path, pera_processes=None)
    with pytest.warns(UserWarning, match="random numbers .* will differ"):
        go_on(tmp_path, path)


def adapter(run: Path, folder: Path) -> Path:
    return run / "given"


def run_folder(run: Path, folder: Path) -> Path:
    return run / "checkpoints"


def empty(run: Path, folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def written(content: bytes) -> Callable[[Path, Path], Path]:
    def write(run: Path, folder: Path) -> Path:
        (folder / "other.ckpt").write_bytes(content)
        return folder / "other.ckpt"

    return write


def cut(run: Path, folder: Path) -> Path:
    whole = (run / "checkpoints" / "whole.ckpt").read_bytes()
    return written(whole[: len(whole) // 2])(run, folder)


def several(run: Path, folder: Path) -> Path:
    (folder / "several").mkdir()
    for name in (".metadata", "meta.pt"):
        (folder / "several" / name).touch()
    return folder / "several"


OTHERS = {
    adapter: "is a PERA adapter's folder(.|\n)*load_adapter",
    run_folder: r"is a folder with checkpoints in it: whole\.ckpt(.|\n)*name one of them",
    empty: "is an empty folder",
    several: "as several processes write it together(.|\n)*consolidate",
    written(b""): "is an empty file",
    written(b"some words\n"): "is a text file",
    cut: "if it was cut off, an earlier one",
}


@pytest.mark.parametrize("other", OTHERS)
def test_what_is_no_checkpoint_is_named(run: Path, tmp_path: Path, other: Callable[[Path, Path], Path]) -> None:
    with pytest.raises(CheckpointError, match=OTHERS[other]):
        go_on(tmp_path, other(run, tmp_path))


@pytest.mark.parametrize("other", [adapter, run_folder])
def test_under_a_strategy_that_reads_folders(
    run: Path, tmp_path: Path, other: Callable[[Path, Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pera_lightning.callback.strategies.model_parallel import ModelParallelRun
    from pera_lightning.callback.strategies.strategy import RunStrategy

    class Alone(ModelParallelRun):
        check_before_loading = RunStrategy.check_before_loading
        shard = RunStrategy.shard

    monkeypatch.setattr("pera_lightning.callback.callback.strategy_of", Alone)
    with pytest.raises(CheckpointError, match=OTHERS[other]):
        go_on(tmp_path, other(run, tmp_path))
