"""Folders that are written as a whole: whoever reads sees the old state or the new one, whenever the writer is killed.

A new folder is written beside the old one and takes its place in one step; a few files of others come along as further
names of the same files. Where that cannot be, as with folders of others, the files take their places one by one: first
the new ones come into the folder together, in one step, within a hidden folder, from where they are moved (`journal`).
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pera_lightning.errors import FolderError, PeraError, one_line
from pera_lightning.storage import journal, left_folders
from pera_lightning.storage.exchange import exchange, somebody_stands_in
from pera_lightning.storage.file_rights import give_rights
from pera_lightning.storage.folder_kind import COMMIT, FolderKind, check_ours, is_ours, marker_last, owned, writing
from pera_lightning.storage.left_folders import NEW, clean, clean_all
from pera_lightning.storage.out_folder import check_room, made_above
from pera_lightning.storage.remote import Place, RemotePath
from pera_lightning.storage.temporaries import in_use, is_temporary, remove

_MOST_LINKS = 100
"""Files of others that come along."""
_TRIES = 100
_PAUSE = 0.002
"""Seconds, beside another writer."""
_TRIES_TO_FINISH = 3
_TOO_MANY = "other processes write to the same folder all the time"
_IN_THE_WAY = (errno.ENOTEMPTY, errno.EEXIST)


@contextmanager
def whole_folder(folder: Place, kind: FolderKind, *, overwrite: bool = False, bytes_needed: int = 0) -> Iterator[Path]:
    """A temporary folder to write to; what is in it takes the place of what is in `folder` when all went well.

    Files of others in `folder` stay. After an exception, and whenever the process is killed, the old state is there or
    the new one, as a whole; at a URL, where its file system has transactions. What killed processes of this machine
    have left behind is removed.

    Args:
        folder: New, empty, or of the kind and written by us; here or at a URL. It is made if needed.
        kind: What is written; all its files and folders have names of the kind.
        overwrite: Whether the folder may be another one: files of the same names are then replaced.
        bytes_needed: How much room it takes; 0 if that is not known.

    Yields:
        The temporary folder.

    Raises:
        FolderError: The folder is somebody else's, cannot be written to, or there is no room. The old state is there
            but where the message says that the new one is complete.
    """
    check_ours(folder, kind, overwrite=overwrite)
    if isinstance(folder, RemotePath):
        with _uploaded(folder, kind) as new:
            yield new
        return
    target = folder.resolve()
    placed = None
    with writing(folder, kind, bytes_needed), made_above(target), ExitStack() as stack:
        check_room(target, bytes_needed)
        outer, beside = _begin(target, kind, stack)
        with _named_as_the_user_does(outer):
            yield outer / NEW
        # Others may have written there meanwhile.
        check_ours(folder, kind, overwrite=overwrite, names=os.listdir(outer / NEW))
        _refuse_other_names(outer / NEW, target, kind)
        give_rights(outer / NEW, target)
        placed = _commit(outer, target, kind, beside)
    if placed is not None:
        _finish(folder, target, kind, placed)


@contextmanager
def _named_as_the_user_does(outer: Path) -> Iterator[None]:
    """Of a file on its way that cannot be written, raise what the system said; `writing` tells the folder."""
    try:
        yield
    except FolderError as error:
        if isinstance(error.__cause__, OSError) and str(outer) in str(error):
            raise error.__cause__ from None
        raise


def _begin(target: Path, kind: FolderKind, stack: ExitStack) -> tuple[Path, bool]:
    """Make the temporary folder, and decide whether it is to change places with the target as a whole."""
    if target.is_dir():
        journal.settle(target, kind)
        clean_all(target, target.name, target)
    clean_all(target.parent, target.name, target)
    if _may_be_replaced(target, kind):
        outer = stack.enter_context(_temporary(target.parent, target, kind))
        if _was_made(outer, target):
            return outer, True
        remove(outer)
    # Before anything is written.
    journal.clear(target, kind)
    outer = stack.enter_context(_temporary(target, target, kind))
    _make(outer)
    return outer, False


@contextmanager
def _temporary(parent: Path, target: Path, kind: FolderKind) -> Iterator[Path]:
    """Where a temporary folder may be made; it is gone afterwards."""
    with in_use(target.name) as name:
        try:
            yield parent / name
        finally:
            clean(parent / name, target, kind)


def _make(outer: Path) -> None:
    outer.mkdir(mode=0o700)
    (outer / NEW).mkdir()


def _was_made(outer: Path, target: Path) -> bool:
    """Make a temporary folder beside the target, unless that cannot be, or cannot take its place."""
    try:
        _make(outer)
    except OSError:
        if not target.exists():
            raise
        return False
    return not target.exists() or _has_same_rights(outer / NEW, target)


def _may_be_replaced(target: Path, kind: FolderKind) -> bool:
    """Whether a folder may be replaced as a whole: it is ours, with few files of others, and nobody stands in it."""
    if not target.exists():
        return True
    if target.is_mount() or somebody_stands_in(target):
        return False
    found = os.listdir(target)
    if not found:
        return True
    others = _others(target, kind)
    return is_ours(target, kind) and all(map(_is_plain, others)) and len(others) <= _MOST_LINKS


def _is_plain(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        # Another writer's, which has just gone.
        return True


def _others(target: Path, kind: FolderKind) -> list[Path]:
    """What in a folder is not ours; a temporary of a process that lives is another's too."""
    for _ in range(_TRIES):
        before = target.stat().st_ino
        is_owned, names = owned(target, kind), os.listdir(target)
        # Else another writer has put a folder of other files into the place, of which that marker says nothing.
        if target.stat().st_ino == before:
            return [target / name for name in names if is_temporary(name) or not is_owned(name)]
    raise OSError(errno.EBUSY, _TOO_MANY)


def _has_same_rights(new: Path, target: Path) -> bool:
    """Give a new folder owner and permissions of the target; whether that was possible."""
    wanted = target.stat()
    try:
        if hasattr(os, "listxattr") and set(os.listxattr(target)) - set(os.listxattr(new)):
            return False
        if hasattr(os, "chown") and (wanted.st_uid, wanted.st_gid) != (new.stat().st_uid, new.stat().st_gid):
            os.chown(new, wanted.st_uid, wanted.st_gid)
        new.chmod(stat.S_IMODE(wanted.st_mode))
    except OSError:
        return False
    return True


def _refuse_other_names(new: Path, target: Path, kind: FolderKind) -> None:
    is_owned = owned(new, kind)
    for path in new.iterdir():
        if not is_owned(path.name):
            raise ValueError(f"{path.name!r} is no file of {kind.name}")
        place = target / path.name
        if place.is_dir() and not path.is_dir():
            raise IsADirectoryError(errno.EISDIR, f"{path.name!r} is a folder there")


def _commit(outer: Path, target: Path, kind: FolderKind, beside: bool) -> int | None:
    """Put the new state into the place of the old one.

    Returns:
        Where its files still have to take their places one by one, the number of the folder that they are in.
    """
    new, written = outer / NEW, set(os.listdir(outer / NEW))
    for number in range(_TRIES):
        try:
            # Files of others, if an earlier try has left names of them.
            for name in set(os.listdir(new)) - written:
                (new / name).unlink()
            if not beside:
                return _place(new, target, kind)
            if not _took_empty_place(new, target):
                _exchange(outer, target, kind)
            return None
        except OSError as error:
            if error.errno == errno.ENOENT and number < _TRIES - 1:
                # Another process has just moved the target, or what is in it, away.
                time.sleep(_PAUSE)
                continue
            if not beside:
                raise
        # It cannot be done here, as on network file systems, or with mount points.
        beside = False
    raise OSError(errno.EBUSY, _TOO_MANY)


def _exchange(outer: Path, target: Path, kind: FolderKind) -> None:
    """Let two folders change places; files of others are in both of them before and afterwards."""
    new, links = outer / NEW, []
    try:
        for path in _others(target, kind):
            if not os.path.lexists(new / path.name):
                links.append(path.name)
                os.link(path, new / path.name, follow_symlinks=False)
        left_folders.tell(outer, target, kind, links)
        exchange(new, target)
    except OSError:
        for name in links:
            remove(new / name)
        raise


def _took_empty_place(new: Path, target: Path) -> bool:
    """Put a folder where there is none or an empty one; whether that was so."""
    try:
        new.rename(target)
    except OSError as error:
        if error.errno in _IN_THE_WAY:
            return False
        raise
    return True


def _place(new: Path, target: Path, kind: FolderKind) -> int:
    """Put files into a folder that stays: together, in one step, into `COMMIT`; returns the number of that folder."""
    target.mkdir(exist_ok=True)
    with ExitStack() as stack:
        for _ in range(_TRIES):
            journal.clear(target, kind)
            journal.tell(new, target, kind)
            number = new.stat().st_ino
            try:
                if _took_empty_place(new, target / COMMIT):
                    return number
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                # The target is a mount point.
                copy = target / stack.enter_context(in_use(target.name))
                stack.callback(remove, copy)
                new = shutil.copytree(new, copy)
    raise OSError(errno.EBUSY, _TOO_MANY)


def _finish(folder: Path, target: Path, kind: FolderKind, number: int) -> None:
    """Let the files take their places. The new state counts by now, whatever comes."""
    for _ in range(_TRIES_TO_FINISH):
        try:
            journal.finish(target, kind, number)
            return
        except OSError as error:
            problem = error
    raise FolderError(
        "The folder is written, but not all of its files are at their places yet.",
        got=f"{folder}, for {kind.name}: {problem.strerror or problem}",
        expected="a folder whose files may be replaced",
        fix=f"get the permission, and read or write it with this package, which finishes that; until then the new "
        f"state is in {COMMIT}",
    ) from problem


@contextmanager
def _uploaded(folder: RemotePath, kind: FolderKind) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pera-") as temporary:
        yield Path(temporary)
        try:
            folder.write({name: Path(temporary, name) for name in marker_last(kind, os.listdir(temporary))})
        except PeraError:
            raise
        # Any: each file system has errors of its own.
        except Exception as error:
            raise FolderError(
                "The URL cannot be written to.",
                got=f"{folder}, for {kind.name}: {one_line(error)}",
                expected="a place that can be written to from here, with the credentials that it needs",
                fix="give the credentials, or name another folder",
            ) from error
