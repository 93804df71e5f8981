"""The last checkpoint of a run that holds what it should, for messages."""

from __future__ import annotations

from typing import Any

from pera_lightning.callback.trained.written_checkpoints import written_checkpoints
from pera_lightning.checkpoint.finite_values import not_finite
from pera_lightning.checkpoint.training.training_checkpoint import read_checkpoint
from pera_lightning.errors import PeraError


def where_to_go_on(trainer: Any) -> str:
    """How to go on from the newest checkpoint whose values are all finite; they are read from disk.

    Args:
        trainer: Of the run that stops.
    """
    words = []
    paths = written_checkpoints(trainer)
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
