"""Folders that results are written to, looked at before the work that they are the end of."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from pera_lightning.errors import FolderError, PeraError, one_line
from pera_lightning.storage.remote import Place, RemotePath, uploaded
from pera_lightning.storage.temporaries import temporary_name


def check_out_folder(
    folder: Place, *, bytes_needed: int = 0, names: Collection[str] = (), option: str = "--out"
) -> None:
    """Raise FolderError unless files can be written into a folder that is there or still to be made.

    A file without a name is really made there: neither permissions nor the free space tell of quotas, limits of the
    process, read-only file systems and network shares. No folder is made.

    Args:
        folder: Where the results are to go; at a URL, a file of no bytes is tried.
        bytes_needed: How large the largest file will be, at most.
        names: Of the files.
        option: What names the folder.
    """
    if isinstance(folder, RemotePath):
        _try_remote(folder, option)
        return
    try:
        found = nearest_existing(folder)
        _refuse_what_is_in_the_way(folder, found, names, option)
        with tempfile.TemporaryFile(prefix=temporary_name(folder.name), dir=found) as file:
            _take_room(file.fileno(), bytes_needed)
    except OSError as error:
        room = f", with room for {bytes_needed / 1e6:,.1f} MB" if bytes_needed else ""
        raise FolderError(
            "Nothing can be written there.",
            got=f"{folder}: {error.strerror or error}",
            expected=f"a folder that this user may write to{room}",
            fix=f"name another with {option}",
        ) from error


def _refuse_what_is_in_the_way(folder: Path, found: Path, names: Collection[str], option: str) -> None:
    if not found.is_dir():
        raise FolderError(
            "What is written needs a folder.",
            got=f"{found}, which is {'a link to nothing' if found.is_symlink() else 'a file'}",
            expected="a folder, new or not",
            fix=f"name another with {option}",
        )
    in_the_way = [folder / name for name in names if (folder / name).is_dir()]
    if in_the_way:
        raise FolderError(
            "A folder is where a file is to be written.",
            got=str(in_the_way[0]),
            expected="a file or nothing",
            fix=f"move it away, or name another with {option}",
        )


def nearest_existing(path: Path) -> Path:
    """The path, or the nearest one above it that is there already; links to nothing are there."""
    return next(found for found in (path, *path.absolute().parents) if found.exists() or found.is_symlink())


@contextmanager
def made_above(path: Path) -> Iterator[None]:
    """Make the folders that a path is in; those that were not there are taken back if what follows fails."""
    missing = [folder for folder in path.parents if not os.path.lexists(folder)]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        # The deepest first. One that holds something by now stays, and so do those above it.
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def check_room(place: Path, bytes_needed: int) -> None:
    """Raise OSError unless there is room, as far as the file system tells.

    Args:
        place: A file or folder, there or not.
        bytes_needed: How much room is needed.
    """
    free = shutil.disk_usage(nearest_existing(place)).free
    if free < bytes_needed:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {bytes_needed:,} bytes needed, {free:,} free")


def _take_room(file: int, count: int) -> None:
    if count and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, count)


def _try_remote(folder: RemotePath, option: str) -> None:
    name = ".pera-writable"
    try:
        with uploaded(folder) as temporary:
            (temporary / name).touch()
        # What may be written need not be allowed to be deleted.
        with contextlib.suppress(Exception):
            folder.remove(name)
    except PeraError:
        raise
    # Any: each file system has errors of its own.
    except Exception as error:
        raise FolderError(
            "Nothing can be written there.",
            got=f"{folder}: {one_line(error)}",
            expected="a place that can be written to from here, with the credentials that it needs",
            fix=f"give the credentials, or name another with {option}",
        ) from error
