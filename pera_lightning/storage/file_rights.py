"""Rights of the files that are written: those of the file before, else what the umask gives."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

_RUN = 0o111


def give_rights(new: Path, target: Path) -> None:
    """Give files of a new state the rights of those that they replace, others what any new file gets.

    safetensors and `tempfile` make files that their owner alone may read.

    Args:
        new: Folder with the new state.
        target: Folder with the old one, or nothing.
    """
    probe = new.with_name("rights")
    probe.touch()
    usual = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in new.rglob("*"):
        if path.is_symlink() or not path.is_file():
            continue
        mode = stat.S_IMODE(path.stat().st_mode)
        wanted = earlier_rights(target / path.relative_to(new))
        _change(path, usual | (mode & _RUN) if wanted is None else wanted)


def keep_rights(new: Path, target: Path) -> None:
    """Give a file the rights of the one that it is to replace, if there is one."""
    wanted = earlier_rights(target)
    if wanted is not None:
        _change(new, wanted)


def earlier_rights(path: Path) -> int | None:
    """Of a plain file; None if there is none."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return None
    return stat.S_IMODE(mode) if stat.S_ISREG(mode) else None


def _change(path: Path, mode: int) -> None:
    if stat.S_IMODE(path.stat().st_mode) != mode:
        # Some file systems have no rights.
        with contextlib.suppress(OSError):
            path.chmod(mode)
