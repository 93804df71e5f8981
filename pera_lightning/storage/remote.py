"""Where users say that files are: local paths, and URLs of other file systems (`s3://`, `gs://`, ...) by fsspec.

`pathlib.Path` takes a URL for the local folder `s3:`. So whatever a user names goes through `place` (local or not) or
`local_path` (local, else refused) before it becomes a `Path`.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pera_lightning.errors import AdapterFileError, ConfigError, FolderError, PeraError, one_line

_LOCAL = re.compile(r"(?:file|local):(?://)?(?=.)")
# Two letters at least: one is a drive of Windows.
_COLLAPSED = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(?!/)")


class RemotePath:
    """A file or folder on another file system, with as much of `pathlib.Path` as adapters need.

    It is no `os.PathLike`: what can only work locally fails on it instead of making a folder `s3:`.

    Args:
        url: Such as `s3://bucket/folder`.
    """

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/") if not url.endswith("://") else url

    def __str__(self) -> str:
        return self._url

    def __repr__(self) -> str:
        return f"RemotePath({self._url!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and other._url == self._url

    def __hash__(self) -> int:
        return hash(self._url)

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(self._url + ("" if self._url.endswith("/") else "/") + name)

    @property
    def name(self) -> str:
        """The last part."""
        return self._url.rpartition("/")[2]

    @property
    def parent(self) -> RemotePath:
        """What the last part is in."""
        return RemotePath(self._url.rpartition("/")[0])

    def is_file(self) -> bool:
        """Whether there is a file of this name."""
        file_system, path = self._opened()
        return bool(file_system.isfile(path))

    def is_dir(self) -> bool:
        """Whether there is something below this name."""
        file_system, path = self._opened()
        return bool(file_system.isdir(path))

    def exists(self) -> bool:
        """Whether there is anything of this name."""
        file_system, path = self._opened()
        return bool(file_system.exists(path))

    def check_reached(self) -> None:
        """Raise AdapterFileError if what stands for nothing here is a network that fails, or a server."""
        file_system, path = self._opened()
        try:
            file_system.info(path)
        # Any: each file system has errors of its own.
        except Exception as error:
            self._refuse_unreached(error)

    def changed(self) -> float:
        """When it was written last, in seconds; 0 where the file system does not tell."""
        file_system, path = self._opened()
        try:
            return float(file_system.modified(path).timestamp())
        except NotImplementedError:
            return 0.0

    def open(self) -> IO[bytes]:
        """The file, to read it.

        Raises:
            FileNotFoundError, IsADirectoryError, NotADirectoryError: There is none.
            AdapterFileError: It cannot be reached.
        """
        file_system, path = self._opened()
        with self._reaching():
            return file_system.open(path, "rb")

    def read_bytes(self, most: int = -1) -> bytes:
        """All of a file, or so many bytes at most; raises what `open` does."""
        with self._reaching(), self.open() as file:
            return file.read(most)

    def read_text(self, encoding: str) -> str:
        """All of a file; raises what `open` does."""
        return self.read_bytes().decode(encoding)

    def names(self) -> list[str]:
        """Names of what is in this folder; none if there is no folder."""
        file_system, path = self._opened()
        found = file_system.ls(path, detail=False) if file_system.isdir(path) else []
        return [name.rstrip("/").rpartition("/")[2] for name in found]

    def write(self, files: dict[str, Path]) -> None:
        """Put local files into this folder, all of them or none where the file system has transactions.

        Args:
            files: Name -> the file with its content, in the order in which they are written.
        """
        file_system, folder = self._opened()
        file_system.makedirs(folder, exist_ok=True)
        with file_system.transaction:
            for name, source in files.items():
                with file_system.open(f"{folder}/{name}", "wb") as file, source.open("rb") as content:
                    while block := content.read(1 << 24):
                        file.write(block)

    def remove(self, name: str) -> None:
        """Delete a file of this folder."""
        file_system, folder = self._opened()
        file_system.rm_file(f"{folder}/{name}")

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except (IsADirectoryError, NotADirectoryError, PeraError):
            raise
        # Any: each file system has errors of its own.
        except Exception as error:
            self._refuse_unreached(error)
            if isinstance(error, FileNotFoundError):
                raise
            raise _unreached(self, error) from error

    def _refuse_unreached(self, error: Exception) -> None:
        """Raise AdapterFileError if a network's failure is behind an error that says that there is no file."""
        link: BaseException | None = error
        while link is not None:
            if _is_failure(link):
                raise _unreached(self, link) from error
            link = link.__cause__ or link.__context__

    def _opened(self) -> tuple[Any, str]:
        """The file system, and the name that this has in it."""
        from fsspec.core import url_to_fs

        try:
            return url_to_fs(self._url)
        # Any: each file system has errors of its own; many look for their credentials here.
        except Exception as error:
            raise ConfigError(
                "This kind of URL cannot be opened here.",
                got=f"{self._url}: {one_line(error)}",
                expected="a local path, or a URL of a file system that fsspec can open",
                fix="install the package of that file system (s3:// needs s3fs, gs:// gcsfs, az:// adlfs) and give it "
                "its credentials, or name a local path",
            ) from error


def _unreached(path: RemotePath, error: BaseException) -> AdapterFileError:
    return AdapterFileError(
        "The file cannot be reached.",
        got=f"{path}: {one_line(error)}",
        expected="a file that can be read from here",
        fix="check the network, the server and the credentials of this kind of storage",
    )


def _is_failure(error: BaseException) -> bool:
    """Whether a network or server failed; False for what says that there is no such file."""
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return status != 404
    missing = isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError)
    return not missing and (isinstance(error, OSError) or type(error).__module__.startswith("aiohttp."))


Place = Path | RemotePath


def place(path: str | os.PathLike[str] | RemotePath) -> Place:
    """What a user named: a local path (also as a `file://` URL), or a URL of another file system.

    Also as `pathlib` and `os.path.normpath` write URLs, with one slash. `~` is the user's folder.

    Raises:
        ConfigError: It is no path.
    """
    if isinstance(path, RemotePath):
        return path
    _refuse_other_things(path)
    text = str(path)
    if local := _LOCAL.match(text):
        return Path(text[local.end() :])
    if "://" in text:
        return RemotePath(text)
    collapsed = _COLLAPSED.match(text)
    if collapsed and _is_known(collapsed[1]):
        return RemotePath(text.replace(":/", "://", 1))
    # As Lightning does: unlike a shell, files of options and Python leave it as it is.
    return Path(os.path.expanduser(path))


def local_path(path: str | os.PathLike[str] | RemotePath, option: str) -> Path:
    """The local path that a user named for something that has to be on this machine.

    Args:
        path: As the user named it.
        option: What it was given for, for the message.

    Raises:
        ConfigError: It is the URL of another file system.
    """
    found = place(path)
    if isinstance(found, RemotePath):
        raise ConfigError(
            f"Here {option} has to be local.",
            got=str(found),
            expected="a path of this machine",
            fix="name a local path, and copy from or to the other file system (fsspec.filesystem(...).get or .put); "
            "adapter folders (adapter_dir, save_adapter, load_adapter, --adapter) and checkpoints may have URLs",
        )
    return found


def local_name(name: str, option: str) -> str:
    """A name of the hub, or a local path, which both stay as they are; of a `file://` URL the path.

    Raises:
        ConfigError: It is the URL of another file system.
    """
    path = local_path(name, option)
    return str(path) if _LOCAL.match(name) else name


def collapsed_url(path: str | os.PathLike[str]) -> str | None:
    """The URL that a local path was made of by mistake: `pathlib.Path("s3://b")` is the folder `b` in one named `s3:`.

    Returns:
        None for other paths.
    """
    text = os.fspath(path)
    if "://" in text:
        return None
    parts = Path(text).parts
    for index, part in enumerate(parts):
        # At the beginning fsspec knows that this is local.
        if part in ("file:", "local:") and index == 0:
            continue
        if len(part) > 2 and part.endswith(":") and _is_known(part[:-1]):
            return f"{part}//{'/'.join(parts[index + 1 :])}"
    return None


@contextmanager
def written(folder: Place) -> Iterator[Path]:
    """A local folder to write files to: the folder itself, which is made if needed, or one that is then uploaded."""
    if isinstance(folder, RemotePath):
        with uploaded(folder) as temporary:
            yield temporary
    else:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


@contextmanager
def uploaded(folder: RemotePath) -> Iterator[Path]:
    """A temporary local folder to write to; its files go to `folder` when all went well.

    Yields:
        The temporary folder.
    """
    with tempfile.TemporaryDirectory(prefix="pera-") as temporary:
        yield Path(temporary)
        written = sorted(Path(temporary).iterdir(), key=lambda path: path.stat().st_mtime_ns)
        folder.write({path.name: path for path in written})


def _refuse_other_things(path: object) -> None:
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str) or "\0" in text or not _is_name(text):
        raise FolderError(
            "This is no path.",
            got=f"{path!r} ({type(path).__name__})",
            expected="a str or a pathlib.Path without zero bytes and halves of characters (surrogates)",
            fix="name a file or folder, or a URL",
        )


def _is_name(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def _is_known(scheme: str) -> bool:
    from fsspec import available_protocols

    return scheme in available_protocols()
