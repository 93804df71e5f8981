"""What `predict` found, as a file with a row for each example."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from pera_lightning.errors import DataError
from pera_lightning.storage.atomic import check_file, replacing
from pera_lightning.storage.regular_file import open_regular
from pera_lightning.storage.remote import Place, RemotePath
from pera_lightning.storage.temporaries import remove

Rows = list[dict[str, Any]]
_LARGEST_MARK = 1 << 16


def check_predictions(path: Place, *, overwrite: bool = False) -> None:
    """Raise FolderError unless predictions may be written to a file: there is none, or they are of an earlier call.

    Args:
        path: The file. Beside it a hidden file of the same name and `.pera` tells what we wrote there.
        overwrite: Whether it may be another one.
    """
    check_file(path, _is_marked, overwrite=overwrite)


def _is_marked(path: Place) -> bool:
    mark = _mark(path)
    return mark.is_file() and _checksum(path) in _marked(mark)


def _mark(path: Any) -> Any:
    """Beside the file itself where the path is a link to it."""
    path = path.resolve() if isinstance(path, Path) else path
    return path.parent / f".{path.name}.pera"


def _marked(mark: Place) -> list[str]:
    """Checksums of the files that may be replaced."""
    try:
        found = json.loads(mark.read_bytes()[:_LARGEST_MARK])["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    return [str(value) for value in found] if isinstance(found, list) else []


def _checksum(path: Place) -> str:
    checksum = hashlib.sha256()
    with path.open() if isinstance(path, RemotePath) else open_regular(path) as file:
        while block := file.read(1 << 20):
            checksum.update(block)
    return checksum.hexdigest()


def write_predictions(
    batches: Sequence[Any], path: Path, *, overwrite: bool = False, readable: Callable[[Rows], Rows] | None = None
) -> int:
    """Write predictions as JSONL, in the order of the data.

    Args:
        batches: What `predict_step` returned for every batch: a mapping of names to values of all examples, or the
            values themselves, which then are named "prediction". Values are a tensor (B, ...) or a list of B.
        path: The file.
        overwrite: Whether it may be somebody else's.
        readable: What makes of the rows those that are written.

    Returns:
        The number of rows.

    Raises:
        FolderError: The file is somebody else's, or cannot be written; it is as it was.
        DataError: `predict_step` returned something else; nothing is written.
        TypeError: A value has no place in JSON, or a tensor has no dimension; nothing is written.
        ValueError: The values of a mapping are not equally many; nothing is written.
    """
    rows = [row for batch in batches for row in _rows(batch)]
    rows = rows if readable is None else readable(rows)
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    # Others may have put one there since it was looked at.
    check_predictions(path, overwrite=overwrite)
    with _marking(path, content) as write_mark, replacing(path) as temporary:
        temporary.write_bytes(content)
        write_mark(temporary)
    return len(rows)


@contextmanager
def _marking(path: Path, content: bytes) -> Iterator[Callable[[Path], None]]:
    """What marks a file as ours before it comes to its place, together with the one that it replaces.

    So no kill leaves a file of ours without a mark. After an exception the mark is as it was.
    """
    mark = _mark(path)
    earlier = mark.read_bytes() if mark.is_file() else None

    def write(temporary: Path) -> None:
        sums = [hashlib.sha256(content).hexdigest(), *_marked(mark)[:1]]
        about = {"about": "pera_lightning wrote the file of this name, and may replace it", "sha256": sums}
        new = temporary.with_name(f"{temporary.name}mark")
        try:
            new.write_text(json.dumps(about) + "\n", encoding="utf-8")
            new.replace(mark)
        finally:
            remove(new)

    try:
        yield write
    except BaseException:
        with contextlib.suppress(OSError):
            if earlier is None:
                mark.unlink()
            else:
                mark.write_bytes(earlier)
        raise


def _rows(batch: Any) -> Iterator[dict[str, Any]]:
    named = batch if isinstance(batch, Mapping) else {"prediction": batch}
    for values in named.values():
        if not isinstance(values, (Tensor, list)):
            raise DataError(
                "Predictions are no rows.",
                got=f"{type(values).__name__} from predict_step",
                expected="a tensor or a list with a value for each example, or a mapping of names to such values",
                fix="return these; the predictions of this run are not written",
            )
    columns = {name: values.tolist() if isinstance(values, Tensor) else values for name, values in named.items()}
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))
