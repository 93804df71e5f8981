"""A fit that is interrupted names its last checkpoint, whichever ModelCheckpoint has written it."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from pera_lightning import PeraCallback, PeraCausalLM
from pera_lightning.callback.trained.written_checkpoints import written_checkpoints
from tests.support.causal_fits import loader, make_trainer, save_llama, unequal_batches


class Interrupt(pl.Callback):
    """Ctrl-C in the second epoch."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt


def interrupted(folder: Path, checkpoints: ModelCheckpoint | None, caplog: pytest.LogCaptureFixture) -> str:
    callbacks = [PeraCallback(rank=2), Interrupt(), *([checkpoints] if checkpoints else [])]
    trainer = make_trainer(folder, *callbacks, max_epochs=3, enable_checkpointing=checkpoints is not None)
    module = PeraCausalLM(save_llama(folder / "model"), learning_rate=0.01)
    with caplog.at_level(logging.INFO), pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer.fit(module, loader(unequal_batches()), loader(unequal_batches()))
    [line] = [text for text in caplog.messages if "ended before its time" in text]
    return line


@pytest.mark.parametrize("options", [{}, {"save_last": True}, {"monitor": "val_loss"}])
def test_the_last_checkpoint_is_named(
    tmp_path: Path, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    line = interrupted(tmp_path, ModelCheckpoint(tmp_path / "kept", **options), caplog)
    [*_, last] = sorted((tmp_path / "kept").iterdir(), key=lambda path: path.stat().st_mtime)
    assert f"its last checkpoint is {last}. `pera_lightning consolidate --checkpoint {last} --out" in line
    assert "save_adapter" not in line


def test_a_checkpoint_of_the_exception_itself_is_still_to_come(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = ModelCheckpoint(tmp_path / "kept", save_top_k=0, save_on_exception=True)
    line = interrupted(tmp_path, checkpoints, caplog)
    assert line.endswith(
        "no checkpoint was written; a ModelCheckpoint with save_on_exception writes the present state, and says where"
    )
    [written] = (tmp_path / "kept").iterdir()
    assert f"saved checkpoint to {written}" in caplog.text
    # Found by a run that begins with the same callbacks.
    assert written_checkpoints(SimpleNamespace(checkpoint_callbacks=[checkpoints])) == [written]


def test_without_a_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    line = interrupted(tmp_path, None, caplog)
    assert line.endswith("no checkpoint was written; save_adapter(module, folder) writes what the module holds")
