"""Loading checkpoints without making the objects in them, unless the user says that the file is harmless."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.serialization import get_unsafe_globals_in_checkpoint

from pera_lightning.checkpoint.training.checkpoint_archive import check_archive
from pera_lightning.errors import CheckpointError, one_line
from pera_lightning.storage.remote import RemotePath, place

_FORCE, _FORCE_NOT = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
"""torch's own switches: what they say holds whatever is given to `torch.load`."""


@contextmanager
def plain_values_alone(path: str | Path, options: dict[str, Any]) -> Iterator[None]:
    """Around the loading of a checkpoint by Lightning: nothing is made of it but tensors and plain values.

    Lightning itself lets files at `http` URLs make objects, before 2.6 all files, and torch what belongs to no tensor
    in a folder of several processes.

    Args:
        path: The checkpoint.
        options: Of the strategy's `load_checkpoint`: `weights_only=False` lets objects be made.

    Raises:
        CheckpointError: Objects are in it, or in the folder a list of tensors that torch did not write.
    """
    if options.get("weights_only") is False or os.environ.get(_FORCE_NOT):
        yield
        return
    # Imported late: torch's part for distributed checkpoints is large.
    from torch.distributed.checkpoint import CheckpointException

    from pera_lightning.checkpoint.training.distributed_metadata import METADATA_FILE, read_metadata

    found = place(path)
    check_archive(found)
    if isinstance(found, Path) and (found / METADATA_FILE).exists():
        # torch would call what it names.
        read_metadata(found)
    before = os.environ.get(_FORCE)
    os.environ[_FORCE] = "1"
    try:
        yield
    except pickle.UnpicklingError as error:
        raise _objects_found(path) from error
    except CheckpointException as error:
        causes = [wrapped[0] for wrapped in error.failures.values()]
        if any(isinstance(cause, pickle.UnpicklingError) for cause in causes):
            raise _objects_found(path) from error
        raise _unreadable(path, next(iter(causes), error)) from error
    finally:
        if before is None:
            del os.environ[_FORCE]
        else:
            os.environ[_FORCE] = before


def _objects_found(path: str | Path) -> CheckpointError:
    names = _objects(path)
    return CheckpointError(
        "The checkpoint holds objects beside tensors and plain values: hyperparameters, most likely.",
        got=f"{path} with {', '.join(names) or 'objects'}",
        expected="what torch.load(weights_only=True) reads, unless the file is known to be harmless",
        fix="if this file is your own: Trainer.fit(..., weights_only=False), and so for validate, test and predict "
        f"(--weights_only false on the command line; before Lightning 2.6 the variable {_FORCE_NOT}=1), or before it "
        f"torch.serialization.add_safe_globals([{', '.join(names) or '...'}]). Of later checkpoints "
        "save_hyperparameters(ignore=[...]) keeps them out",
    )


def _unreadable(path: str | Path, cause: BaseException) -> CheckpointError:
    return CheckpointError(
        "The checkpoint cannot be read.",
        got=f"{path}: {one_line(cause)}",
        expected="the files of all processes that wrote it",
        fix="copy the whole folder, or go on from an earlier checkpoint",
    )


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
