"""Single files that are written so that a reader never sees half of one, and none of somebody else's is replaced."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pera_lightning.errors import FolderError
from pera_lightning.storage.file_rights import keep_rights
from pera_lightning.storage.out_folder import made_above, nearest_existing
from pera_lightning.storage.remote import Place, RemotePath
from pera_lightning.storage.temporaries import in_use, remove, stale


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes the place of `path` when all went well.

    What killed processes of this machine have left of such files is removed. The rights are those of the file before.

    Args:
        path: The file to write, or a link to it, which stays; its folder is made if needed.

    Yields:
        The temporary path. After an exception it is deleted and `path` is as it was.

    Raises:
        FolderError: It cannot be written; `path` is as it was.
    """
    target = path.parent / os.path.realpath(path) if path.is_symlink() else path
    try:
        with made_above(target), in_use(target.name) as name:
            for left in stale(target.parent, target.name):
                # A folder is that of a writer of folders, who knows what is in it.
                if not left.is_dir():
                    remove(left)
            temporary = target.parent / name
            try:
                yield temporary
                keep_rights(temporary, target)
                temporary.replace(target)
            finally:
                remove(temporary)
    except OSError as error:
        raise FolderError(
            "The file cannot be written; what was there is as it was.",
            got=f"{path}: {error.strerror or error}",
            expected="a folder that you may write to, with room",
            fix="make room or get the permission, or name another folder",
        ) from error


def check_file(path: Place, is_ours: Callable[[Place], bool], *, overwrite: bool = False) -> None:
    """Raise FolderError unless a file is new or written by us; nothing is changed.

    Args:
        path: The file that is to be written, here or at a URL.
        is_ours: Whether a file that is there was written by us.
        overwrite: Whether it may be another one.
    """
    found: Place = path
    if isinstance(path, RemotePath):
        is_there, in_the_way = path.is_file(), False
    else:
        found = nearest_existing(path)
        is_there = found == path
        in_the_way = not found.is_file() if is_there else not found.is_dir()
    if in_the_way or (is_there and not overwrite and not is_ours(path)):
        raise FolderError(
            "The file is not ours, and is not replaced.",
            got=str(found),
            expected="no file, or one that was written by the same command",
            fix="move it away"
            + ("" if in_the_way else ", or overwrite=True (on the command line --overwrite true) replaces it"),
        )
