"""The last checkpoint of a run that holds what it should, for messages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint

from pera_lightning.checkpoint.finite_values import not_finite
from pera_lightning.checkpoint.training.training_checkpoint import read_checkpoint
from pera_lightning.errors import PeraError
from pera_lightning.storage.remote import Place, place


def where_to_go_on(trainer: Any) -> str:
    """How to go on from the newest checkpoint whose values are all finite; they are read from disk.

    Args:
        trainer: Of the run that stops.
    """
    words = []
    paths = sorted(set(_written(trainer)), key=_changed, reverse=True)
    for path in paths:
        try:
            held = read_checkpoint(path)
            good = not not_finite(held.tensors())
        except (PeraError, OSError):
            continue
        if good:
            words += [f"go on from the last good checkpoint, of step {held.step}", f"fit(ckpt_path={str(path)!r})"]
            break
    else:
        words += [f"no good checkpoint of this run is there ({len(paths)} others)", "start again"]
    return ": ".join(words)


def _changed(path: Place) -> float:
    return path.stat().st_mtime if isinstance(path, Path) else path.changed()


def _written(trainer: Any) -> Iterator[Place]:
    """What the run has written, and what it began with."""
    found = [getattr(trainer, "ckpt_path", None)]
    for callback in getattr(trainer, "checkpoint_callbacks", ()):
        if isinstance(callback, ModelCheckpoint):
            found += [callback._last_checkpoint_saved, callback.last_model_path, callback.best_model_path]
            found += callback.best_k_models
    return (place(path) for path in found if path and place(path).exists())
