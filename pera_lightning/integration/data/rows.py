"""Rows of data files (JSON, JSON Lines, CSV, parquet, text) and hub data sets, each with the place it came from.

JSON and CSV are parsed here rather than by `datasets`, because an error message should name the line.
"""

from __future__ import annotations

import csv
import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pera_lightning.errors import DataError

ROW_ENDINGS = (".jsonl", ".json", ".csv", ".parquet")
TEXT_ENDINGS = (".txt", *ROW_ENDINGS)

_SEPARATOR = re.compile(r"[\s,]*")
_JSON_LAYOUTS = "an array of objects, or one object per line"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a data file.

    Args:
        where: Where the row stands, for messages: `"train.jsonl, line 7"`.
        fields: Its fields as read, not checked.
    """

    where: str
    fields: Mapping[str, Any]


# A row that cannot be parsed is yielded as the error that describes it (not raised), so that the caller
# decides whether it ends the run or is skipped.
ParsedRow = Row | DataError


def check_file(path: Path, endings: Sequence[str]) -> None:
    """Checks that a data file exists and has one of the endings.

    Raises:
        DataError: If it does not; the message lists near names.
    """
    if not path.is_file():
        raise DataError(
            f"The data file {path} does not exist.",
            got="a folder" if path.is_dir() else "no such file",
            expected=f"a file ending in {', '.join(endings)}",
            fix=_near_names(path, endings),
        )
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
        return datasets.load_dataset(name, config)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"The data set {name!r} cannot be loaded.",
            got=f"{type(error).__name__}: {shorten(error)}",
            expected="a data set of the hub (with a network, or cached earlier) or a local folder",
            fix="check the name and dataset_config, or give local files through train_files",
        ) from error


def dataset_rows(name: str, dataset: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
    """Yields the rows of a table of `datasets`, numbered from 1."""
    for number, fields in enumerate(dataset, start=1):
        yield Row(f"{name}, row {number}", fields)


def shorten(value: object, width: int = 80) -> str:
    """Returns the value in one line of at most `width` characters, for messages."""
    text = " ".join(str(value).split())
    return text if len(text) <= width else text[: width - 3] + "..."


def _read_jsonl(path: Path) -> Iterator[ParsedRow]:
    for number, line in _decoded_lines(path):
        if line.strip():
            yield _parse_json_line(f"{path}, line {number}", line)


def _parse_json_line(where: str, line: str) -> ParsedRow:
    try:
        return _object_row(where, json.loads(line.rstrip()))
    except json.JSONDecodeError as error:
        return DataError(
            f"{where}, column {error.colno}: this is not JSON ({error.msg}).",
            got=shorten(line),
            expected=_JSON_LAYOUTS,
            fix="correct the line, or set on_bad_row: skip to leave such rows out",
        )


def _read_json(path: Path) -> Iterator[ParsedRow]:
    text = _decoded(path)
    if not text.lstrip().startswith("["):
        # Many tools write one object per line into a file that they call .json.
        yield from _read_jsonl(path)
        return
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}, column {error.colno}: this is not JSON ({error.msg}).",
            got=shorten(text[max(error.pos - 30, 0) : error.pos + 30]),
            expected=_JSON_LAYOUTS,
            fix="correct the file at this place",
        ) from error
    for line, item in _array_items(text):
        yield _object_row(f"{path}, line {line}", item)


def _array_items(text: str) -> Iterator[tuple[int, Any]]:
    """Yields (line, item) of a text that is known to be a valid JSON array."""
    decoder = json.JSONDecoder()
    line, position = 1, 0
    item_start = text.index("[") + 1
    while True:
        separator = _SEPARATOR.match(text, item_start)
        assert separator is not None  # the pattern matches the empty string
        item_start = separator.end()
        line += text.count("\n", position, item_start)
        position = item_start
        if text[item_start] == "]":
            return
        item, item_start = decoder.raw_decode(text, item_start)
        yield line, item


def _object_row(where: str, value: object) -> ParsedRow:
    if isinstance(value, dict):
        return Row(where, value)
    return DataError(
        f"{where}: this is not a row.",
        got=f"{type(value).__name__} {shorten(value)}",
        expected="a JSON object with the fields of the row",
        fix="correct the row, or set on_bad_row: skip to leave such rows out",
    )


def _read_csv(path: Path) -> Iterator[ParsedRow]:
    reader = csv.reader((line for _, line in _decoded_lines(path)), strict=True)
    header: list[str] | None = None
    while True:
        where = f"{path}, line {reader.line_num + 1}"
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{where}: this is not CSV ({error}).",
                got="a record that cannot be read",
                expected='fields separated by commas, quoted by ", with "" for a quotation mark inside',
                fix="correct the quoting at this place, or convert the file to JSON Lines",
            ) from error
        if not values:
            continue
        if header is None:
            header = _csv_header(path, values)
        elif len(values) == len(header):
            yield Row(where, dict(zip(header, values, strict=True)))
        else:
            yield DataError(
                f"{where}: this row does not fit the header.",
                got=f"{len(values)} fields",
                expected=f"{len(header)} fields: {', '.join(header)}",
                fix="correct the row (quote fields that hold commas), or set on_bad_row: skip",
            )


def _csv_header(path: Path, names: list[str]) -> list[str]:
    if len(set(names)) != len(names):
        raise DataError(
            f"{path}, line 1: the header names a field twice.",
            got=", ".join(names),
            expected="different names",
            fix="rename or remove one of the columns",
        )
    return names


def _read_parquet(path: Path) -> Iterator[ParsedRow]:
    import datasets

    try:
        table = datasets.Dataset.from_parquet(str(path))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{path} cannot be read as parquet.",
            got=f"{type(error).__name__}: {shorten(error.__cause__ or error)}",
            expected="a complete parquet file",
            fix="write or download the file again",
        ) from error
    return dataset_rows(str(path), table)


def _read_txt(path: Path) -> Iterator[ParsedRow]:
    yield Row(str(path), {"text": _decoded(path)})


def _decoded(path: Path) -> str:
    return "".join(line for _, line in _decoded_lines(path))


def _decoded_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (number, line) with the line end kept; a byte order mark is dropped."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}, line {number}: this is not UTF-8.",
                    got=f"the byte 0x{line[error.start]:02x} at position {error.start + 1} of the line",
                    expected="a text file in UTF-8",
                    fix="save the file as UTF-8",
                ) from error


def _near_names(path: Path, endings: Sequence[str]) -> str:
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist either: correct the path"
    siblings = sorted(entry.name for entry in path.parent.iterdir() if entry.suffix.lower() in endings)
    near = difflib.get_close_matches(path.name, siblings, n=3, cutoff=0.4) or siblings[:3]
    if not near:
        return f"correct the path ({path.parent} holds no data file)"
    return f"did you mean {' or '.join(near)} in {path.parent}?"


_READERS: dict[str, Callable[[Path], Iterator[ParsedRow]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".txt": _read_txt,
}
