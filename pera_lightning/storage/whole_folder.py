"""Folders that are written as a whole: whoever reads sees the old state or the new one, whenever the writer is killed.

A new folder is written beside the old one and takes its place in one step; a few files of others come along as further
names of the same files. Where that cannot be, as with folders of others, the files take their places one by one: first
the new ones come into the folder together, in one step, within a hidden folder (`COMMIT`); from there `settle` moves
them, and finishes what was interrupted when somebody reads or writes next.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pera_lightning.errors import FolderError, PeraError, one_line
from pera_lightning.storage.exchange import exchange
from pera_lightning.storage.folder_kind import (
    COMMIT,
    FolderKind,
    as_object,
    check_ours,
    entries,
    is_ours,
    marker_last,
    owned,
    writing,
)
from pera_lightning.storage.left_folders import COMPLETE, LEFT, NEW, clean, clean_all
from pera_lightning.storage.out_folder import check_room
from pera_lightning.storage.remote import Place, RemotePath
from pera_lightning.storage.temporaries import is_temporary, remove, temporary_name

_MOST_LINKS = 100
"""Files of others that come along."""
_TRIES = 100
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
        FolderError: The folder is somebody else's, cannot be written to, or there is no room.
    """
    check_ours(folder, kind, overwrite=overwrite)
    if isinstance(folder, RemotePath):
        with _uploaded(folder, kind) as new:
            yield new
        return
    target = folder.resolve()
    with writing(folder, kind, bytes_needed):
        check_room(target, bytes_needed)
        outer, beside = _begin(target, kind)
        try:
            yield outer / NEW
            # Others may have written there meanwhile.
            check_ours(folder, kind, overwrite=overwrite, names=os.listdir(outer / NEW))
            _refuse_other_names(outer / NEW, target, kind)
            (outer / COMPLETE).touch()
            _commit(outer / NEW, target, kind, beside)
        finally:
            clean(outer, target, kind)


def settle(folder: Place, kind: FolderKind) -> None:
    """Finish what was interrupted while files took their places in a folder; call it before reading one.

    Several processes may do so at once, and beside one that writes.

    Raises:
        OSError: There is something to finish, and this process may not write.
    """
    if isinstance(folder, RemotePath):
        return
    # Not a link, which would bring files from elsewhere.
    if (folder / COMMIT).is_symlink():
        return
    try:
        names = os.listdir(folder / COMMIT)
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in marker_last(kind, names):
        # Another process may be faster.
        with contextlib.suppress(FileNotFoundError):
            if name == LEFT:
                _remove_left(folder)
            else:
                _move(folder / COMMIT / name, folder / name)
    with contextlib.suppress(OSError):
        (folder / COMMIT).rmdir()


def _move(source: Path, place: Path) -> None:
    if source.is_dir():
        remove(place)
    source.replace(place)


def _begin(target: Path, kind: FolderKind) -> tuple[Path, bool]:
    """Make the temporary folder, and decide whether it is to change places with the target as a whole."""
    if target.is_dir():
        settle(target, kind)
        clean_all(target, target.name, target, kind)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
    clean_all(target.parent, target.name, target, kind)
    if _may_be_replaced(target, kind):
        try:
            outer = _temporary(target.parent, target.name)
        except OSError:
            if not target.exists():
                raise
        else:
            if not target.exists() or _has_same_rights(outer / NEW, target):
                return outer, True
            remove(outer)
    return _temporary(target, target.name), False


def _temporary(parent: Path, name: str) -> Path:
    outer = parent / temporary_name(name)
    outer.mkdir(mode=0o700)
    (outer / NEW).mkdir()
    return outer


def _may_be_replaced(target: Path, kind: FolderKind) -> bool:
    """Whether a folder may be replaced as a whole: it is ours, with few files of others, and nobody stands in it."""
    if not target.exists():
        return True
    if target.is_mount() or _stands_in(target):
        return False
    found = os.listdir(target)
    if not found:
        return True
    others = _others(target, kind)
    plain = all(stat.S_ISREG(path.lstat().st_mode) for path in others)
    return is_ours(target, kind) and plain and len(others) <= _MOST_LINKS


def _others(target: Path, kind: FolderKind) -> list[Path]:
    """What in a folder is not ours; a temporary of a process that lives is another's too."""
    for _ in range(_TRIES):
        before = target.stat().st_ino
        is_owned, names = owned(target, kind), os.listdir(target)
        # Else another writer has put a folder of other files into the place, of which that marker says nothing.
        if target.stat().st_ino == before:
            return [target / name for name in names if is_temporary(name) or not is_owned(name)]
    raise OSError(errno.EBUSY, _TOO_MANY)


def _stands_in(target: Path) -> bool:
    try:
        return Path.cwd().is_relative_to(target)
    except FileNotFoundError:
        return False


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


def _commit(new: Path, target: Path, kind: FolderKind, beside: bool) -> None:
    for _ in range(_TRIES):
        try:
            if not beside:
                _place(new, target, kind)
            elif not _took_empty_place(new, target):
                _exchange(new, target, kind)
            return
        except OSError as error:
            if error.errno == errno.ENOENT and beside:
                # Another process has just moved the target away.
                continue
            if not beside:
                raise
        # It cannot be done here, as on network file systems, or with mount points.
        beside = False
    raise OSError(errno.EBUSY, _TOO_MANY)


def _exchange(new: Path, target: Path, kind: FolderKind) -> None:
    """Let two folders change places; files of others are in both of them before and afterwards."""
    links = []
    try:
        for path in _others(target, kind):
            if not os.path.lexists(new / path.name):
                os.link(path, new / path.name, follow_symlinks=False)
                links.append(new / path.name)
        exchange(new, target)
    except OSError:
        for link in links:
            link.unlink()
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


def _place(new: Path, target: Path, kind: FolderKind) -> None:
    """Put files into a folder that stays: together, in one step, into `COMMIT`, and from there one by one."""
    target.mkdir(exist_ok=True)
    for _ in range(_TRIES):
        settle(target, kind)
        _tell_left(new, target, kind)
        try:
            if _took_empty_place(new, target / COMMIT):
                break
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            # The target is a mount point.
            new = Path(shutil.copytree(new, target / temporary_name(target.name)))
    else:
        raise OSError(errno.EBUSY, _TOO_MANY)
    settle(target, kind)


def _tell_left(new: Path, target: Path, kind: FolderKind) -> None:
    """Note what of the old state has no successor: when the new marker is there, nothing tells whose it was."""
    if not is_ours(target, kind):
        return
    is_owned, names = owned(target, kind), set(os.listdir(new))
    left = {name: _identity(target / name) for name in entries(target) if is_owned(name) and name not in names}
    (new / LEFT).write_text(json.dumps(left), encoding="utf-8")


def _remove_left(folder: Path) -> None:
    left = as_object((folder / COMMIT / LEFT).read_bytes())
    for name in entries(folder):
        # Somebody may have put another one there.
        if name in left and _identity(folder / name) == left[name]:
            remove(folder / name)
    (folder / COMMIT / LEFT).unlink()


def _identity(path: Path) -> list[int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return [found.st_ino, found.st_mtime_ns]


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
