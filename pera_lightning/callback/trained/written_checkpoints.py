"""The checkpoints of a run that are there, for messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint

from pera_lightning.storage.remote import Place, place


def written_checkpoints(trainer: Any) -> list[Place]:
    """What a run has written, by any of its ModelCheckpoints, and what it began with; the newest first.

    Args:
        trainer: Of the run.
    """
    found = [getattr(trainer, "ckpt_path", None)]
    for callback in getattr(trainer, "checkpoint_callbacks", ()):
        if isinstance(callback, ModelCheckpoint):
            # `last_model_path` is that of save_last alone.
            found += [callback._last_checkpoint_saved, callback.last_model_path, callback.best_model_path]
            found += callback.best_k_models
    there = {place(path) for path in found if path and place(path).exists()}
    return sorted(there, key=_changed, reverse=True)


def _changed(path: Place) -> float:
    return path.stat().st_mtime if isinstance(path, Path) else path.changed()
