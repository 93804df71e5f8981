"""Checkpoints that hold objects, which torch does not make from a file without being told to."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.serialization import get_unsafe_globals_in_checkpoint

from pera_lightning.checkpoint.remote import RemotePath, place
from pera_lightning.errors import CheckpointError


@contextmanager
def objects_explained(path: str | Path) -> Iterator[None]:
    """Around the loading of a checkpoint: say what is in it and how it can be loaded, where torch refuses it.

    Args:
        path: The checkpoint.

    Raises:
        CheckpointError: In place of torch's error.
    """
    try:
        yield
    except pickle.UnpicklingError as error:
        names = _objects(path)
        listed = ", ".join(names) or "objects"
        raise CheckpointError(
            "The checkpoint holds objects beside tensors and plain values: hyperparameters, most likely.",
            got=f"{path} with {listed}",
            expected="what torch.load(weights_only=True) reads, unless the file is known to be harmless",
            fix="if this file is your own: Trainer.fit(..., weights_only=False), and so for validate, test and predict "
            "(--weights_only false on the command line), or before it torch.serialization.add_safe_globals "
            f"([{', '.join(names) or '...'}]). Of later checkpoints save_hyperparameters(ignore=[...]) keeps them out",
        ) from error


def _objects(path: str | Path) -> list[str]:
    """Names of the classes and functions that a checkpoint would import."""
    found = place(path)
    if isinstance(found, RemotePath) or not found.is_file():
        return []
    try:
        return sorted(get_unsafe_globals_in_checkpoint(found))
    # A message must not fail on a file that is damaged too.
    except Exception:
        return []
