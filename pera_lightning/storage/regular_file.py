"""Opening files that others have put there: plain files alone, so that no pipe is waited for."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_regular(path: Path) -> None:
    """Raise OSError unless there is a plain file, or a link to one; nothing is opened.

    Raises:
        FileNotFoundError, NotADirectoryError, PermissionError: There is none, or it cannot be reached.
        IsADirectoryError: It is a folder.
    """
    _check_mode(path.stat().st_mode, path)


def open_regular(path: Path) -> BinaryIO:
    """A plain file, to read it.

    Raises:
        OSError: There is none, see `check_regular`, or it cannot be read.
    """
    check_regular(path)
    # Without waiting: something else may have come into its place since.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    file = os.fdopen(os.open(path, flags), "rb")
    try:
        _check_mode(os.fstat(file.fileno()).st_mode, path)
    except BaseException:
        file.close()
        raise
    return file


def _check_mode(mode: int, path: Path) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "a folder, not a file", str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"{_KINDS.get(stat.S_IFMT(mode), 'something else')}, not a file", str(path))
