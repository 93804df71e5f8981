"""Two folders change places in one step, where system and file system can, and no process stands in one."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

_HERE = -100
"""AT_FDCWD: relative paths begin in the working directory."""
_EXCHANGE = 2
"""RENAME_EXCHANGE"""
_PROCESSES = "/proc"


def exchange(one: Path, other: Path) -> None:
    """Let two files or folders of one file system change places: every process sees both as before or both changed.

    Raises:
        OSError: They are as they were; ENOSYS where the system cannot.
    """
    function = _renameat2()
    if function is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if function(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(one), None, str(other))


@cache
def _renameat2() -> Any:
    """The C library's function; None where there is none."""
    if not sys.platform.startswith("linux"):
        return None
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    return function


def somebody_stands_in(folder: Path) -> bool:
    """Whether a folder, or one below it, is the working directory of this process, or of one that may be looked at.

    It would be left in a deleted one if another folder took its place. On Linux these are the processes of the same
    user, for root all; elsewhere this process alone.

    Args:
        folder: Without links in its path.
    """
    with contextlib.suppress(FileNotFoundError):
        if Path.cwd().is_relative_to(folder):
            return True
    try:
        processes = [name for name in os.listdir(_PROCESSES) if name.isdigit()]
        wanted = folder.stat()
    except OSError:
        return False
    return any(_is_in(f"{_PROCESSES}/{process}/cwd", folder, wanted) for process in processes)


def _is_in(link: str, folder: Path, wanted: os.stat_result) -> bool:
    try:
        # Containers have other paths; the folder itself is recognised all the same.
        within = f"{os.readlink(link)}/".startswith(f"{folder}/")
        return within or os.path.samestat(os.stat(link), wanted)
    # Of another user, or it has just ended.
    except OSError:
        return False
