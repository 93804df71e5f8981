"""Where a checkpoint was expected: what is there instead, and what to do with it."""

from __future__ import annotations

from pathlib import Path

from pera_lightning.errors import CheckpointError
from pera_lightning.storage.recognition.found_instead import found_instead
from pera_lightning.storage.remote import Place


def refuse_no_checkpoint(path: Place) -> None:
    """Raise CheckpointError for what is no checkpoint, such as an adapter's folder; at a URL nothing is looked at."""
    found = found_instead(path) if isinstance(path, Path) else None
    if found is not None:
        raise CheckpointError(
            "This is no checkpoint of a Trainer.",
            got=f"{path}, which is {found.what}",
            expected="a .ckpt file, or the folder that several processes wrote together",
            fix=found.cure,
        )


def refuse_other_folders(path: Place) -> None:
    """The same of folders alone."""
    if isinstance(path, Path) and path.is_dir():
        refuse_no_checkpoint(path)
