"""What is left of a folder that another one has taken the place of, and of writers that have died: it is removed."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from pera_lightning.storage.folder_kind import COMMIT, FolderKind, marker_last, owned
from pera_lightning.storage.temporaries import is_stale, is_temporary, remove, stale

NEW = "new"
"""Within a temporary folder: what is to take the place of the target; afterwards what was there before."""
COMPLETE = "complete"
"""Within a temporary folder: a file that says that the new state is complete, and may be in its place already."""
LEFT = ".pera-left"
"""Within `COMMIT`: a file that tells what of the old state is to be removed, and by what it is recognised."""


def clean_all(parent: Path, name: str, target: Path, kind: FolderKind) -> None:
    """Remove what processes that have died left in a folder on their way to `name`."""
    for path in stale(parent, name):
        clean(path, target, kind)


def clean(outer: Path, target: Path, kind: FolderKind) -> None:
    """Remove a temporary folder with what it holds, but for files of others that came into the old state late."""
    if (outer / COMPLETE).exists() and target.is_dir():
        for _ in range(3):
            _retire(outer / NEW, target, kind)
        with contextlib.suppress(OSError):
            (outer / COMPLETE).unlink()
        with contextlib.suppress(OSError):
            outer.rmdir()
        return
    remove(outer)


def _retire(old: Path, target: Path, kind: FolderKind) -> None:
    try:
        names, is_owned = os.listdir(old), owned(old, kind)
    except OSError:
        return
    # The marker last: it tells whose the others are.
    for name in marker_last(kind, names):
        ours = is_stale(name) if is_temporary(name) else name in (COMMIT, LEFT) or is_owned(name)
        if ours or _is_known(old / name, target / name):
            remove(old / name)
        else:
            with contextlib.suppress(OSError):
                (old / name).rename(target / name)
    with contextlib.suppress(OSError):
        old.rmdir()


def _is_known(left: Path, present: Path) -> bool:
    """Whether a file of others is in the new state too, as it is or in a later form."""
    try:
        before, here = left.lstat(), present.lstat()
    except OSError:
        return False
    later = before.st_mtime_ns <= here.st_mtime_ns
    return not left.is_dir() and (os.path.samestat(before, here) or later)
