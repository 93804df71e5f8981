"""A best checkpoint that was damaged during the run left no adapter folder, although the last weights were there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pera_lightning import PeraCallback
from pera_lightning.checkpoint.training import training_checkpoint
from tests.support.callback_fits import make_trainer
from tests.support.rising import Rising, is_of, rising, weights_row


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_bytes("\N{SNOWMAN} no checkpoint".encode("utf-16"))


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def number(path: Path) -> None:
    torch.save(5, path)


def spoiled(path: Path) -> None:
    held = torch.load(path, weights_only=True)
    held["state_dict"]["net.0.pera_A"][0, 0] = float("nan")
    torch.save(held, path)


def no_state(path: Path) -> None:
    held = torch.load(path, weights_only=True)
    torch.save({**held, "state_dict": None}, path)


def fit(root: Path, damage: Callable[[Path], None]) -> tuple[Rising, Path]:
    class Damaging(Rising):
        def on_train_end(self) -> None:
            damage(Path(best.best_model_path))

    best, module = rising(root), Damaging()
    make_trainer(root, PeraCallback(2), best).fit(module)
    return module, Path(best.best_model_path)


DAMAGES = [cut, empty, text, folder, number, spoiled, no_state]


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_last_weights_are_written(damage: Callable[[Path], None], tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"step=4.ckpt is not what the adapter folder gets: "):
        module, best = fit(tmp_path, damage)
    assert is_of(tmp_path / "adapter", module)
    row = weights_row(tmp_path / "adapter")
    assert f"of step 8, the last one (the best checkpoint {best} is not used: " in row


@pytest.mark.parametrize(
    "error",
    [OSError(5, "torn"), UnicodeDecodeError("utf-8", b"x", 0, 1, "torn"), AttributeError("torn"), MemoryError()],
)
def test_whatever_reading_it_raises(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(training_checkpoint.TrainingCheckpoint, "tensors", fail)
    with pytest.warns(UserWarning, match=rf"is not what the adapter folder gets: {type(error).__name__}"):
        module, _ = fit(tmp_path, lambda path: None)
    assert is_of(tmp_path / "adapter", module)
    assert f"is not used: {type(error).__name__}" in weights_row(tmp_path / "adapter")
