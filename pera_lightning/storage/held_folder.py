"""Folders that are held open, and what their entries are recognised by later."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from pathlib import Path

from pera_lightning.storage.regular_file import read_regular

_BY_DESCRIPTOR = os.open in os.supports_dir_fd and os.rename in os.supports_dir_fd and os.listdir in os.supports_fd


def identity(path: Path | str, dir_fd: int | None = None) -> list[int] | None:
    """Number, size and time of change of a file, of a folder its number; None if there is nothing.

    Args:
        path: Links are not followed.
        dir_fd: The open folder that the path begins in.
    """
    try:
        found = os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISDIR(found.st_mode):
        return [found.st_ino]
    return [found.st_ino, found.st_size, found.st_mtime_ns]


class HeldFolder:
    """A folder that stays the same one when its name goes to another; where the system cannot hold one, its path."""

    def __init__(self, path: Path, within: HeldFolder | None = None) -> None:
        self.path = path
        self.descriptor: int | None = None
        if _BY_DESCRIPTOR:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (os.O_NOFOLLOW if within else 0)
            self.descriptor = os.open(within.entry(path.name) if within else path, flags, dir_fd=_number(within))
        elif within and path.is_symlink():
            raise NotADirectoryError(errno.ENOTDIR, "a link", str(path))

    def close(self) -> None:
        """Let it go."""
        if self.descriptor is not None:
            os.close(self.descriptor)

    def entry(self, name: str) -> str:
        """What names an entry, beside `dir_fd`."""
        return name if self.descriptor is not None else str(self.path / name)

    def names(self) -> list[str]:
        """Of what is in it."""
        return os.listdir(self.path if self.descriptor is None else self.descriptor)

    def identity(self, name: str) -> list[int] | None:
        """See `identity`."""
        return identity(self.entry(name), self.descriptor)

    def own(self) -> list[int] | None:
        """Its own `identity`."""
        found = os.stat(self.path if self.descriptor is None else self.descriptor)
        return [found.st_ino]

    def mode(self, name: str) -> int:
        """Kind and rights of an entry; links are not followed."""
        return os.stat(self.entry(name), dir_fd=self.descriptor, follow_symlinks=False).st_mode

    def read(self, name: str, most: int) -> bytes:
        """A plain file, see `read_regular`."""
        return read_regular(self.entry(name), most, dir_fd=self.descriptor, follow=False)

    def move(self, name: str, place: HeldFolder, to: str) -> None:
        """Give an entry a place in a folder, whatever is there."""
        os.replace(self.entry(name), place.entry(to), src_dir_fd=self.descriptor, dst_dir_fd=place.descriptor)

    def write(self, name: str, content: str) -> None:
        """Make a new file."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with os.fdopen(os.open(self.entry(name), flags, 0o666, dir_fd=self.descriptor), "w", encoding="utf-8") as file:
            file.write(content)

    def remove(self, name: str) -> None:
        """Delete a file or folder, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISDIR(self.mode(name)):
                shutil.rmtree(self.entry(name), dir_fd=self.descriptor)
            else:
                os.unlink(self.entry(name), dir_fd=self.descriptor)

    def remove_empty(self, name: str) -> None:
        """Delete a folder if it is there and empty."""
        with contextlib.suppress(OSError):
            os.rmdir(self.entry(name), dir_fd=self.descriptor)


def _number(folder: HeldFolder | None) -> int | None:
    return folder.descriptor if folder else None
