"""What a checkpoint file is looked at for before torch reads it: that it is a file, and holds no more than it shows."""

from __future__ import annotations

import zipfile
from pathlib import Path

from pera_lightning.checkpoint.training.pickle_walk import refuse_endless_pickle
from pera_lightning.errors import CheckpointError, one_line
from pera_lightning.storage.regular_file import check_regular
from pera_lightning.storage.remote import Place


def check_archive(path: Place) -> None:
    """Raise CheckpointError for a local file that would take another amount of memory than its size, or no end.

    torch stores tensors as they are. It also reads compressed ones, of which a few bytes make gigabytes, and parts that
    share their place.

    Args:
        path: A file that `torch.save` wrote. Folders, places where there is nothing and URLs are passed over.
    """
    refuse_other_files(path)
    if not isinstance(path, Path) or not path.is_file():
        return
    try:
        archive = zipfile.ZipFile(path)
    # Of a form before torch 1.6, or damaged, which reading it finds out.
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return
    with archive:
        parts = archive.infolist()
        size, present = sum(part.file_size for part in parts), path.stat().st_size
        if size > present:
            raise CheckpointError(
                "The checkpoint is none that torch wrote.",
                got=f"{path} with parts of {size:,} bytes in a file of {present:,}: compressed, or one over the other",
                expected="a file of torch.save, which holds tensors as they are",
                fix="take the file as the Trainer wrote it",
            )
        for part in parts:
            if part.filename.endswith("data.pkl"):
                _check_pickle(path, archive, part)


def refuse_other_files(path: Place) -> None:
    """Raise CheckpointError for a pipe or a device, which would be waited for."""
    if not isinstance(path, Path) or not path.exists() or path.is_dir():
        return
    try:
        check_regular(path)
    except OSError as error:
        raise CheckpointError(
            "The checkpoint is neither a file nor a folder.",
            got=f"{path}: {error.strerror}",
            expected="what a Trainer has written",
            fix="correct the path",
        ) from error


def _check_pickle(path: Path, archive: zipfile.ZipFile, part: zipfile.ZipInfo) -> None:
    try:
        with archive.open(part) as file:
            refuse_endless_pickle(file)
    # Any: a damaged pickle makes of the walk what it says.
    except Exception as error:
        raise CheckpointError(
            "The checkpoint is damaged.",
            got=f"{path}: {one_line(error)}",
            expected="a whole file",
            fix="if it was cut off, go on from an earlier one",
        ) from error
