"""Names of temporary files and folders that tell who writes them, so that those of dead processes can be removed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LONGEST = 150
"""Bytes of a name that are kept in that of its temporary; file systems take 255."""
_TEMPORARY = re.compile(r"\..*\.pera-([0-9a-f]{8})-(\d+)-([0-9a-f]{8})\w*", re.DOTALL)
_BOOT = "/proc/sys/kernel/random/boot_id"
"""On Linux: a number of the machine that is new whenever it starts."""
_IN_USE: set[str] = set()
"""Ends of the names that this process writes to now."""


def temporary_name(name: str) -> str:
    """A new hidden name for what is to take the place of `name`, of this machine and process; more may be added."""
    return f"{_beginning(name)}{_machine()}-{os.getpid()}-{secrets.token_hex(4)}"


@contextmanager
def in_use(name: str) -> Iterator[str]:
    """A `temporary_name` that is not stale as long as this lasts; afterwards it is, even while this process lives."""
    temporary = temporary_name(name)
    token = temporary[-8:]
    try:
        _IN_USE.add(token)
        yield temporary
    finally:
        _IN_USE.discard(token)


def is_temporary(name: str) -> bool:
    """Whether a name is one of `temporary_name`, of any process."""
    return _TEMPORARY.fullmatch(name) is not None


def is_stale(name: str) -> bool:
    """Whether a name is one of `temporary_name` that nobody of this machine uses any more."""
    found = _TEMPORARY.fullmatch(name)
    if found is None or found[1] != _machine():
        return False
    process = int(found[2])
    return found[3] not in _IN_USE if process == os.getpid() else not _is_alive(process)


def stale(parent: Path, name: str) -> Iterator[Path]:
    """What was once to take the place of `name`, and is nobody's of this machine any more."""
    beginning = _beginning(name)
    for found in os.listdir(parent):
        if found.startswith(beginning) and is_stale(found):
            yield parent / found


def remove(path: Path) -> None:
    """Delete a file or folder; that another process deletes it too does not matter, nor that it cannot be."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        path.unlink()


def _beginning(name: str) -> str:
    return f".{os.fsencode(name)[:_LONGEST].decode(errors='ignore')}.pera-"


def _machine() -> str:
    """Of this machine since it was started; of containers too, whose processes have numbers of their own.

    Machines may have the same name, and the first space of process numbers has the same one everywhere.
    """
    try:
        space = os.readlink("/proc/self/ns/pid")
        started = Path(_BOOT).read_text(encoding="ascii").strip()
    except OSError:
        space = started = ""
    return hashlib.sha256(f"{platform.node()} {space} {started}".encode()).hexdigest()[:8]


def _is_alive(process: int) -> bool:
    if sys.platform == "win32":
        # There `os.kill` ends the process whatever the signal is.
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        # It is another user's.
        return True
    return True
