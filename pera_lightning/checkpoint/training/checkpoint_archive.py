"""What a checkpoint file is looked at for before torch reads it: that it is a file, and makes no more than it holds."""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from pera_lightning.checkpoint.training.archive_parts import START, ArchiveDamage, archive_parts
from pera_lightning.checkpoint.training.pickle_walk import refuse_endless_pickle
from pera_lightning.checkpoint.training.tensor_records import check_records
from pera_lightning.errors import CheckpointError, one_line
from pera_lightning.storage.recognition.found_instead import LEGACY, found_instead
from pera_lightning.storage.regular_file import check_regular, open_regular
from pera_lightning.storage.remote import Place

_DATA, _PROGRAM = "data.pkl", "constants.pkl"
_TENSORS = "data/"


def check_archive(path: Place) -> None:
    """Raise CheckpointError for a file that would take another amount of memory than its size, or no end.

    torch stores tensors as they are. It also reads compressed ones, of which a few bytes make gigabytes, tensors that
    are larger than what is stored of them, and the form it had before 1.6, in which sizes come before what they are of.

    Args:
        path: A file that `torch.save` wrote; of one at a URL a copy is looked at. Folders are passed over, and what
            cannot be opened: to read it says why.
    """
    refuse_other_files(path)
    with ExitStack() as stack:
        try:
            file = stack.enter_context(_opened(path))
        # Any: each file system has errors of its own.
        except Exception:
            return
        _check_stream(file, path)


def check_parts(folder: Path, parts: Iterable[tuple[str, int, int]]) -> None:
    """As `check_archive`, of files that hold one archive after the other, as several processes write them.

    Args:
        folder: The checkpoint.
        parts: Of each archive the name of its file, where it begins in it, and its bytes.
    """
    for name, begin, size in parts:
        with open_regular(folder / name) as file:
            file.seek(begin)
            _check_stream(io.BytesIO(file.read(size)), folder / name)


@contextmanager
def _opened(path: Place) -> Iterator[IO[bytes]]:
    if isinstance(path, Path):
        with open_regular(path) as file:
            yield file
        return
    # Not every file system can search in a file.
    with tempfile.TemporaryFile() as copy:
        with path.open() as file:
            shutil.copyfileobj(file, copy)
        copy.seek(0)
        yield copy


def _check_stream(file: IO[bytes], path: Place) -> None:
    try:
        _check(file, path)
    except CheckpointError:
        raise
    # Any: a damaged archive or pickle makes of its readers what it says.
    except Exception as error:
        got = f"with {error}" if isinstance(error, ArchiveDamage) else one_line(error)
        raise CheckpointError(
            "The checkpoint is damaged, or none that torch wrote.",
            got=f"{path}: {got}",
            expected="a file of torch.save, which holds tensors as they are",
            fix="take the file as the Trainer wrote it; if it was cut off, an earlier one",
        ) from error


def refuse_other_files(path: Place) -> None:
    """Raise CheckpointError for a pipe or a device, which would be waited for."""
    if not isinstance(path, Path) or not path.exists() or path.is_dir():
        return
    try:
        check_regular(path)
    except OSError as error:
        raise CheckpointError(
            "The checkpoint is neither a file nor a folder.",
            got=f"{path}: {error.strerror}",
            expected="what a Trainer has written",
            fix="correct the path",
        ) from error


def _check(file: IO[bytes], path: Place) -> None:
    start = file.read(max(len(START), len(LEGACY)))
    if start.startswith(LEGACY):
        raise CheckpointError(
            "The checkpoint is of torch's form before 1.6, whose sizes cannot be trusted.",
            got=f"{path}, written with _use_new_zipfile_serialization=False",
            expected="the form that torch.save writes by itself",
            fix="if the file is your own, write it anew: torch.save(torch.load(path, weights_only=True), other_path)",
        )
    # In this order torch itself decides.
    parts = archive_parts(file) if start.startswith(START) else {}
    if _DATA not in parts or _PROGRAM in parts:
        found = found_instead(path)
        raise CheckpointError(
            "The file is no checkpoint of a Trainer, or a damaged one.",
            got=f"{path}, which is {found.what if found else 'an archive of another kind'}",
            expected="a .ckpt file",
            fix=found.cure if found else "correct the path",
        )
    place, size = parts[_DATA]
    file.seek(place)
    pickled = io.BytesIO(file.read(size))
    refuse_endless_pickle(pickled)
    sizes = {name.removeprefix(_TENSORS): size for name, (_, size) in parts.items() if name.startswith(_TENSORS)}
    check_records(pickled, {key.lower(): size for key, size in sizes.items()})
