"""Whose a folder is: one rule for every place that is written."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from safetensors import SafetensorError

from pera_lightning.errors import FolderError
from pera_lightning.storage.out_folder import nearest_existing
from pera_lightning.storage.regular_file import read_regular
from pera_lightning.storage.remote import Place, RemotePath
from pera_lightning.storage.temporaries import is_temporary

COMMIT = ".pera-commit"
"""Folder within one that is written: files of a whole new state, on their way to their places."""
_LARGEST_MARKER = 1 << 26
_TRIES = 3
_OVERWRITE = "overwrite=True (on the command line --overwrite true)"


@dataclass(frozen=True)
class FolderKind:
    """What is written into folders of one kind.

    Attributes:
        name: With its article, such as "a PERA adapter".
        marker: The file that folders of this kind are recognised by; it comes to its place last.
        recognise: Whether the marker's JSON object is one that we wrote; an empty one if it is no such.
        files: Patterns of the names of files and folders that are written, those of earlier versions too; `*` stands
            for anything.
        beside: Patterns of what may lie beside them without making it somebody else's folder.
        listed: Names of further files and folders that were written, from the marker's JSON object.
    """

    name: str
    marker: str
    recognise: Callable[[dict[str, Any]], bool]
    files: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    listed: Callable[[dict[str, Any]], Collection[str]] = lambda _: ()

    def owns(self, name: str, values: dict[str, Any]) -> bool:
        """Whether a file or folder was written by us, by its name and the JSON object in the marker beside it."""
        return _matches(name, (self.marker, *self.files)) or (self.recognise(values) and name in self.listed(values))


def check_ours(
    folder: Place,
    kind: FolderKind,
    *,
    overwrite: bool = False,
    names: Collection[str] = (),
    permit: str | None = _OVERWRITE,
    option: str | None = None,
) -> None:
    """Raise FolderError unless a folder is new, empty, or of the same kind and written by us. Changes nothing.

    Args:
        folder: Where something of this kind is to be written.
        kind: The kind.
        overwrite: Whether the folder may be another one: files of the kind's names are then replaced, all else stays.
        names: Of what is to be written, where they are known: in a folder of ours too, somebody else may have a file of
            such a name.
        permit: How `overwrite` is set, for the message; None where it cannot be.
        option: What names the folder, for the message.
    """
    with writing(folder, kind):
        _refuse_no_folder(folder)
        others = [] if overwrite else _others(folder, kind, names)
    if not others:
        return
    shown = ", ".join(repr(name) for name in others[:3]) + (", ..." if len(others) > 3 else "")
    raise FolderError(
        "The folder is not ours: it holds other files, and nothing is written into it.",
        got=f"{folder} with {shown}",
        expected=f"a new or empty folder, or {kind.name} that was written before",
        fix="name another folder"
        + (f" with {option}" if option else "")
        + (f"; to replace files of the same names in this one, {permit}" if permit else ""),
    )


@contextmanager
def writing(folder: Place, kind: FolderKind, bytes_needed: int = 0) -> Iterator[None]:
    """Make a FolderError of what the system says while a folder is written.

    Args:
        folder: The folder.
        kind: What is written there.
        bytes_needed: How much room it takes; 0 if that is not known.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = _reason(error)
        if reason is None:
            raise
        room = f", with room for {bytes_needed:,} bytes" if bytes_needed else ""
        raise FolderError(
            "The folder cannot be written to; what was in it is as it was.",
            got=f"{folder}, for {kind.name}: {reason}",
            expected=f"a folder that you may write to{room}",
            fix="name another folder"
            if isinstance(error, NotADirectoryError)
            else "make room or get the permission, or name another folder",
        ) from error


def _reason(error: OSError | SafetensorError) -> str | None:
    """What the system said; None if it is no error of the system."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    found = re.search(r"os error (\d+)", str(error))
    return os.strerror(int(found[1])) if found else None


def is_ours(folder: Place, kind: FolderKind) -> bool:
    """Whether a folder is there and of the kind.

    Raises:
        OSError: The folder cannot be looked into.
    """
    # Beside a writer a file may be in neither place for whoever is slow.
    return any(kind.recognise(as_object(_marker(folder, kind.marker))) for _ in range(_TRIES))


def owned(folder: Place, kind: FolderKind) -> Callable[[str], bool]:
    """What tells by its name whether a file or folder in a folder of the kind was written by us."""
    values = as_object(_marker(folder, kind.marker))
    return lambda name: kind.owns(name, values) or is_temporary(name)


def listed_files(values: dict[str, Any]) -> list[str]:
    """What is under `files` in a marker."""
    found = values.get("files")
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


def marker_last(kind: FolderKind, names: Sequence[str]) -> list[str]:
    """Names of files in the order in which they come to their places."""
    return sorted(names, key=lambda name: (name == kind.marker, name))


def entries(folder: Place) -> list[str]:
    """Names in a folder, without what is ours on its way; none if there is no folder."""
    try:
        names = folder.names() if isinstance(folder, RemotePath) else [path.name for path in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(name for name in names if name != COMMIT and not is_temporary(name))


def _refuse_no_folder(folder: Place) -> None:
    if isinstance(folder, RemotePath):
        return
    found = nearest_existing(folder)
    if not found.is_dir():
        kind = "a link to nothing" if found.is_symlink() else "a file"
        raise NotADirectoryError(errno.ENOTDIR, f"{found}, which is {kind}")


def _others(folder: Place, kind: FolderKind, names: Collection[str]) -> list[str]:
    found = [name for name in entries(folder) if not _matches(name, kind.beside)]
    if not found or not is_ours(folder, kind):
        return found
    is_owned = owned(folder, kind)
    return [name for name in found if name in names and not is_owned(name)]


def _marker(folder: Place, name: str) -> bytes:
    """What is in the marker, on its way or at its place; nothing if there is none."""
    if isinstance(folder, RemotePath):
        return (folder / name).read_bytes() if (folder / name).is_file() else b""
    for path in (folder / COMMIT / name, folder / name):
        try:
            return read_regular(path, _LARGEST_MARKER)
        except PermissionError:
            raise
        except OSError:
            continue
    return b""


def as_object(content: bytes) -> dict[str, Any]:
    """The JSON object in a file; an empty one if there is none."""
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
