"""Loading checkpoints without making the objects in them, unless the user says that the file is harmless."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch.serialization import get_unsafe_globals_in_checkpoint

from pera_lightning.checkpoint.training.checkpoint_archive import check_archive, check_parts
from pera_lightning.checkpoint.training.named_objects import reason_of_torch, unneeded
from pera_lightning.checkpoint.training.training_checkpoint import META_FILE
from pera_lightning.errors import CheckpointError
from pera_lightning.storage.recognition.found_instead import found_instead
from pera_lightning.storage.remote import place

_FORCE, _FORCE_NOT = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
"""torch's own switches: what they say holds whatever is given to `torch.load`."""
_NAMED = re.compile(r"GLOBAL (\S+) ")
"""A name, where torch says that it is none that a file may have."""


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

    from pera_lightning.checkpoint.training.distributed_metadata import METADATA_FILE, archives, read_metadata

    found = place(path)
    check_archive(found)
    if isinstance(found, Path) and found.is_dir():
        for file in sorted(found.rglob("*.pt")):
            check_archive(file)
    if isinstance(found, Path) and (found / METADATA_FILE).exists():
        # torch would call what it names.
        check_parts(found, archives(read_metadata(found)))
    before = os.environ.get(_FORCE)
    os.environ[_FORCE] = "1"
    try:
        yield
    except CheckpointException as error:
        causes = [wrapped[0] for wrapped in error.failures.values()]
        refused = next((cause for cause in causes if isinstance(cause, pickle.UnpicklingError)), None)
        cause = refused or next(iter(causes), error)
        raise _refused(path, cause) from error
    except pickle.UnpicklingError as error:
        raise _refused(path, error) from error
    finally:
        if before is None:
            del os.environ[_FORCE]
        else:
            os.environ[_FORCE] = before


def _refused(path: str | Path, cause: BaseException) -> CheckpointError:
    """What to say of a checkpoint that torch refused."""
    names = _objects(path, cause)
    if not names:
        found = found_instead(place(path))
        return CheckpointError(
            "The checkpoint cannot be read: it is damaged, or none.",
            got=f"{path}" + (f", which is {found.what}" if found else f": {reason_of_torch(cause)}"),
            expected="what a Trainer has written, with the files of all its processes",
            fix=found.cure if found else "copy it again, whole, or go on from an earlier one",
        )
    what = "The checkpoint holds objects beside tensors and plain values"
    others = unneeded(names)
    if others:
        return CheckpointError(
            f"{what}, and names what no checkpoint needs.",
            got=f"{path} with {', '.join(others)}",
            expected="tensors and plain values; of objects, classes that this run has imported",
            fix="do not load it as it is: it would call that. `consolidate` makes a folder of its adapter and calls "
            "nothing. If the file is your own, save_hyperparameters(ignore=[...]) keeps functions out of later ones",
        )
    return CheckpointError(
        f"{what}: hyperparameters, most likely.",
        got=f"{path} with {', '.join(names)}",
        expected="what torch.load(weights_only=True) reads, unless the file is known to be harmless",
        fix="if this file is your own: Trainer.fit(..., weights_only=False), and so for validate, test and predict "
        f"(--weights_only false on the command line; before Lightning 2.6 the variable {_FORCE_NOT}=1), or before it "
        f"torch.serialization.add_safe_globals([{', '.join(names)}]). Of later checkpoints "
        "save_hyperparameters(ignore=[...]) keeps them out",
    )


def _objects(path: str | Path, cause: BaseException) -> list[str]:
    """Names of the classes and functions that a checkpoint would import; of a folder, in what belongs to no tensor."""
    found = place(path)
    file = found / META_FILE if found.is_dir() else found
    # A message must not fail on a file that is damaged too, or that is far away.
    with suppress(Exception):
        if isinstance(file, Path):
            return sorted(get_unsafe_globals_in_checkpoint(file)) or _NAMED.findall(str(cause))
    return _NAMED.findall(str(cause))
