"""The folder `COMMIT` within one that stays: a whole new state, whose files take their places one by one.

Whoever reads or writes next finishes what was interrupted. A folder may come from anywhere: only what we wrote is
moved, all of it is looked at before, and nothing that somebody has put there since is replaced. Folders are held open,
so that files move from the state that was looked at to the folder that it belongs to, whatever other processes do.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pera_lightning.errors import FolderError
from pera_lightning.storage.folder_kind import COMMIT, FolderKind, as_object, entries, is_ours, marker_last, owned
from pera_lightning.storage.held_folder import HeldFolder, identity
from pera_lightning.storage.remote import Place, RemotePath
from pera_lightning.storage.temporaries import in_use, is_stale, is_temporary, remove

RECORD = ".pera-left"
"""Within `COMMIT`: what was there before, and what of it is to be removed. It goes last."""
_LARGEST = 1 << 26
_TRIES = 100
_TOO_MANY = "other processes write to the same folder all the time"


class NotOursError(OSError):
    """What is in the place of a journal is none of ours."""


def settle(folder: Place, kind: FolderKind) -> bool:
    """Finish what was interrupted while files took their places in a folder; call it before reading one.

    Several processes may do so at once, and beside one that writes. What is not ours, or is outdated by what somebody
    has put there since, is left alone.

    Returns:
        Whether there was something, so that files that were read before may be of two states.

    Raises:
        OSError: There is something to finish, and this process may not write.
    """
    if isinstance(folder, RemotePath):
        return False
    try:
        with opened(folder, kind) as journal:
            if journal is None or journal.is_outdated():
                return False
            journal.finish()
            return bool(journal.names)
    except NotOursError:
        return False


def clear(folder: Path, kind: FolderKind) -> None:
    """Make room for a new state: finish what can be, remove what is outdated.

    Raises:
        FolderError: There is something that is not ours.
        OSError: This process may not write.
    """
    try:
        with opened(folder, kind) as journal:
            if journal is None:
                return
            if journal.is_outdated():
                journal.discard()
            else:
                journal.finish()
    except NotOursError as error:
        raise FolderError(
            "Something else is where the files of a new state are put first.",
            got=f"{folder / COMMIT}: {error.strerror}",
            expected="nothing of this name, or what a killed writer of the same kind has left",
            fix="look at it, and move it away",
        ) from error


def finish(folder: Path, kind: FolderKind, number: int) -> None:
    """Let the files of a state that this process has just put into `COMMIT` take their places.

    Args:
        folder: The folder.
        kind: Its kind.
        number: That of the folder `COMMIT` with that state; nothing is done where another process has finished it.
    """
    for _ in range(_TRIES):
        with opened(folder, kind) as journal:
            if journal is None or journal.number != number:
                return
            if not journal.is_current():
                # Another writer was faster: what was told of before is not there any more.
                journal.renew(kind)
                continue
            journal.finish()
            return
    raise OSError(errno.EBUSY, _TOO_MANY)


def tell(new: Path, target: Path, kind: FolderKind) -> None:
    """Note in a new state what it takes the place of, and what of the old state has no successor."""
    names = [name for name in os.listdir(new) if name != RECORD]
    (new / RECORD).write_text(json.dumps(_told(names, target, kind)), encoding="utf-8")


def _told(names: Sequence[str], target: Path, kind: FolderKind) -> dict[str, Any]:
    left: dict[str, list[int] | None] = {}
    # When the new marker is there, nothing tells whose it was.
    if is_ours(target, kind):
        is_owned = owned(target, kind)
        left = {name: identity(target / name) for name in entries(target) if is_owned(name) and name not in names}
    return {"folder": identity(target), "before": {name: identity(target / name) for name in names}, "left": left}


class _Journal:
    """A state on its way, which has been found to be one of ours."""

    def __init__(self, folder: HeldFolder, commit: HeldFolder, names: list[str], record: dict[str, Any]) -> None:
        self._folder, self._commit, self.names = folder, commit, names
        self._before, self._left = record.get("before", {}), record.get("left", {})
        # In a copy of the folder all files are others; nothing can be told of them.
        self._applies = record.get("folder") == folder.own()
        self.owned: Callable[[str], bool] = lambda _: False
        own = commit.own()
        self.number = own[0] if own else 0

    def is_current(self) -> bool:
        """Whether it was told for this folder as it is."""
        return self._applies and not self.is_outdated()

    def is_outdated(self) -> bool:
        """Whether somebody has put other files into the places of those that are still to move."""
        return self._applies and any(map(self._has_other, self.names))

    def _has_other(self, name: str) -> bool:
        found = self._folder.identity(name)
        if found is None or found == self._before.get(name):
            return False
        # Else another process has just moved it.
        return self._commit.identity(name) is not None

    def finish(self) -> None:
        """Move all files to their places; another process may do so too."""
        if self.names and self._applies:
            for name in self._folder.names():
                # Somebody may have put another one there.
                if name in self._left and self.owned(name) and self._folder.identity(name) == self._left[name]:
                    self._folder.remove(name)
        for name in self.names:
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISDIR(self._commit.mode(name)):
                    self._folder.remove(name)
                self._commit.move(name, self._folder, name)
        # All is in its place: what cannot be removed is left to the next one.
        with contextlib.suppress(OSError):
            for name in filter(is_stale, self._commit.names()):
                self._commit.remove(name)
            self._commit.remove(RECORD)
            self._folder.remove_empty(COMMIT)

    def discard(self) -> None:
        """Remove it with what is in it."""
        if self._folder.identity(COMMIT) != self._commit.own():
            return
        with in_use(COMMIT) as name:
            self._folder.move(COMMIT, self._folder, name)
            remove(self._folder.path / name)

    def renew(self, kind: FolderKind) -> None:
        """Tell again what it takes the place of."""
        # Where another process removes the whole meanwhile, there is nothing to tell.
        with in_use(RECORD) as name, contextlib.suppress(FileNotFoundError):
            self._commit.write(name, json.dumps(_told(self.names, self._folder.path, kind)))
            self._commit.move(name, self._commit, RECORD)


@contextmanager
def opened(folder: Path, kind: FolderKind) -> Iterator[_Journal | None]:
    """What is on its way in a folder; None if there is nothing.

    Raises:
        NotOursError: Something else is in its place.
    """
    with contextlib.ExitStack() as stack:
        try:
            target = HeldFolder(folder)
        except (FileNotFoundError, NotADirectoryError):
            yield None
            return
        stack.callback(target.close)
        try:
            commit = HeldFolder(folder / COMMIT, target)
        except FileNotFoundError:
            yield None
            return
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise NotOursError(error.errno, "no folder, but a file or a link") from error
            raise
        stack.callback(commit.close)
        yield _looked_at(target, commit, kind)


def _looked_at(folder: HeldFolder, commit: HeldFolder, kind: FolderKind) -> _Journal:
    for _ in range(_TRIES):
        names = commit.names()
        try:
            return _ours(folder, commit, names, kind)
        except FileNotFoundError:
            # Another process is finishing it.
            continue
    raise OSError(errno.EBUSY, _TOO_MANY)


def _ours(folder: HeldFolder, commit: HeldFolder, names: list[str], kind: FolderKind) -> _Journal:
    if not names:
        return _Journal(folder, commit, [], {})
    files = [name for name in marker_last(kind, names) if name != RECORD and not is_temporary(name)]
    # The order in which they go: a list of names may be of several moments.
    record = as_object(_read(commit, RECORD, files))
    if not all(map(_is_told, (record.get("before"), record.get("left")))):
        raise NotOursError(errno.EINVAL, f"{RECORD} is none that this package writes")
    journal = _Journal(folder, commit, files, record)
    if not files:
        return journal
    values = as_object(_read(commit, kind.marker, files))
    if not kind.recognise(values):
        raise NotOursError(errno.EINVAL, f"{kind.marker} is not that of {kind.name}")
    for name in files:
        _check_file(folder, commit, name, kind, values, record["before"])
    # What of the old state may be removed: the old marker is there until the new one takes its place.
    earlier = _values(folder, kind.marker)
    journal.owned = lambda name: kind.owns(name, earlier)
    return journal


def _is_told(part: object) -> bool:
    return isinstance(part, dict) and all(value is None or isinstance(value, list) for value in part.values())


def _check_file(
    folder: HeldFolder, commit: HeldFolder, name: str, kind: FolderKind, values: dict[str, Any], before: dict[str, Any]
) -> None:
    if not kind.owns(name, values) or name not in before:
        raise NotOursError(errno.EINVAL, f"{name!r} is no file of {kind.name}")
    try:
        mode = commit.mode(name)
    except FileNotFoundError:
        return
    known = before[name]
    # A folder takes the place of a folder of ours, or of nothing.
    is_folder = stat.S_ISDIR(mode) and name != kind.marker and (known is None or len(known) == 1)
    if not stat.S_ISREG(mode) and not is_folder:
        raise NotOursError(errno.EINVAL, f"{name!r} is no plain file")
    if is_folder and folder.identity(name) not in (None, known) and commit.identity(name) is not None:
        raise NotOursError(errno.EINVAL, f"{name!r} is another folder by now")


def _read(commit: HeldFolder, name: str, files: Sequence[str]) -> bytes:
    try:
        return commit.read(name, _LARGEST)
    except FileNotFoundError:
        # It goes after those files.
        if any(commit.identity(file) is not None for file in files if file != name):
            raise NotOursError(errno.EINVAL, f"there is no {name}") from None
        raise
    except OSError as error:
        raise NotOursError(error.errno or errno.EINVAL, f"{name}: {error.strerror}") from error


def _values(folder: HeldFolder, marker: str) -> dict[str, Any]:
    try:
        return as_object(folder.read(marker, _LARGEST))
    except OSError:
        return {}
