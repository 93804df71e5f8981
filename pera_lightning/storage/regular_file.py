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

_WITHOUT_WAITING = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


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
    # Something else may have come into its place since.
    file = os.fdopen(os.open(path, _WITHOUT_WAITING), "rb")
    try:
        _check_mode(os.fstat(file.fileno()).st_mode, path)
    except BaseException:
        file.close()
        raise
    return file


def read_regular(path: Path | str, most: int, *, dir_fd: int | None = None, follow: bool = True) -> bytes:
    """All of a plain file.

    Args:
        path: The file.
        most: Bytes that it may have.
        dir_fd: The open folder that the path begins in.
        follow: Whether it may be a link to one.

    Raises:
        OSError: There is none, see `check_regular`, it is larger, or it cannot be read.
    """
    _check_mode(os.stat(path, dir_fd=dir_fd, follow_symlinks=follow).st_mode, path)
    flags = _WITHOUT_WAITING | (0 if follow else getattr(os, "O_NOFOLLOW", 0))
    with os.fdopen(os.open(path, flags, dir_fd=dir_fd), "rb") as file:
        found = os.fstat(file.fileno())
        _check_mode(found.st_mode, path)
        content = file.read(most + 1) if found.st_size <= most else b""
    if max(found.st_size, len(content)) > most:
        raise OSError(errno.EFBIG, f"more than {most:,} bytes", str(path))
    return content


def _check_mode(mode: int, path: Path | str) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "a folder, not a file", str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"{_KINDS.get(stat.S_IFMT(mode), 'something else')}, not a file", str(path))
