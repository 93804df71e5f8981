"""Rows of data files, by the ending of their names, and of hub data sets, each with the place it came from."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pera_lightning.data.reading.csv_rows import read_csv
from pera_lightning.data.reading.json_rows import read_json, read_jsonl
from pera_lightning.data.reading.parquet_rows import read_parquet
from pera_lightning.data.reading.parsed_row import ParsedRow, Row, shorten
from pera_lightning.data.reading.text_lines import read_text
from pera_lightning.errors import DataError
from pera_lightning.storage.regular_file import check_regular

_ROW_READERS: dict[str, Callable[[Path], Iterator[ParsedRow]]] = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".parquet": read_parquet,
}
"""Ending of a file with a row for each example -> what reads it; all there is to say of a format."""
_READERS = {".txt": read_text, **_ROW_READERS}
ROW_ENDINGS = tuple(_ROW_READERS)
TEXT_ENDINGS = tuple(_READERS)
"""Of what may hold plain text: also a file that is one text."""


def check_file(path: Path, endings: Sequence[str]) -> None:
    """Checks that a data file exists and has one of the endings.

    Raises:
        DataError: If it does not; the message lists near names.
    """
    try:
        check_regular(path)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        problem = "does not exist" if missing else "cannot be read"
        raise DataError(
            f"The data file {path} {problem}.",
            got="no such file" if missing else error.strerror,
            expected=f"a file ending in {', '.join(endings)}",
            fix=_near_names(path, endings),
        ) from None
    if path.suffix.lower() not in endings:
        raise DataError(
            f"The data file {path} is of an unknown kind.",
            got=f"the ending {path.suffix!r}",
            expected=f"one of {', '.join(endings)}",
            fix="convert the file to JSON Lines (one object per line) and name it .jsonl",
        )


def read_rows(path: Path, endings: Sequence[str] = ROW_ENDINGS) -> Iterator[ParsedRow]:
    """Reads the rows of one file lazily; a row that cannot be parsed comes as a `DataError`.

    Args:
        path: The file.
        endings: Those it may have. A text file is one row with the field `text`.

    Raises:
        DataError: If the file is missing or damaged as a whole (encoding, JSON array, CSV quoting, parquet).
    """
    check_file(path, endings)
    return _READERS[path.suffix.lower()](path)


def load_hub_dataset(name: str, config: str | None) -> Mapping[str, Iterable[Mapping[str, Any]]]:
    """Loads (and downloads, if it is not cached) a data set of the hub, or of a local folder.

    Columns of pictures, sounds and the like are left out: to show such a value, `datasets` opens the file or the
    address that stands in its row.

    Args:
        name: Hub id or folder.
        config: Configuration (subset) of the data set.

    Returns:
        The rows of every split, by split name.

    Raises:
        DataError: If it cannot be loaded.
    """
    import datasets

    try:
        loaded = datasets.load_dataset(name, config)
        return {split: rows.remove_columns(_opened(rows.features)) for split, rows in loaded.items()}
    except Exception as error:  # whatever `datasets` makes of damaged files and descriptions
        raise DataError(
            f"The data set {name!r} cannot be loaded.",
            got=f"{type(error).__name__}: {shorten(error)}",
            expected="a data set of the hub (with a network, or cached earlier) or a local folder",
            fix="check the name and dataset_config, or give local files through train_files",
        ) from error


_PLAIN = ("Value", "ClassLabel", "Json", "Translation", "TranslationVariableLanguages")
_LISTS = ("Sequence", "List", "LargeList")


def _opened(features: Mapping[str, Any]) -> list[str]:
    """The columns that hold more than texts, numbers, lists and objects."""
    return [name for name, feature in features.items() if not _is_plain(feature)]


def _is_plain(feature: Any) -> bool:
    if isinstance(feature, Mapping):
        return all(map(_is_plain, feature.values()))
    if isinstance(feature, list | tuple):
        return all(map(_is_plain, feature))
    kind = type(feature).__name__
    return kind in _PLAIN or (kind in _LISTS and _is_plain(feature.feature))


def dataset_rows(name: str, dataset: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
    """Yields the rows of a table of `datasets`, numbered from 1.

    Raises:
        DataError: A row cannot be read.
    """
    number = 0
    try:
        for number, fields in enumerate(dataset, start=1):
            yield Row(f"{name}, row {number}", fields)
    except Exception as error:  # text that is none, dates beyond all calendars
        raise DataError(
            f"{name}, row {number + 1}: the row cannot be read.",
            got=f"{type(error).__name__}: {shorten(error)}",
            expected="texts, numbers, lists and objects",
            fix="correct the data set, or save what is used of it as JSON Lines",
        ) from error


def _near_names(path: Path, endings: Sequence[str]) -> str:
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist either: correct the path"
    siblings = sorted(entry.name for entry in path.parent.iterdir() if entry.suffix.lower() in endings)
    if near := difflib.get_close_matches(path.name, siblings, n=3, cutoff=0.4):
        return f"did you mean {' or '.join(near)} in {path.parent}?"
    more = ", ..." if len(siblings) > 3 else ""
    return f"correct the path ({path.parent} holds {', '.join(siblings[:3]) or 'no data file'}{more})"
