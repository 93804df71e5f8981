"""Rows of parquet files, by what their columns are and nothing that they say of them.

Read by pyarrow and not by `datasets`: that takes features out of the file's metadata, some of which open files and
addresses that stand in the rows. Texts that a file holds once and repeats stay so until their row is made, and what a
file unfolds to is bounded by its size.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from pera_lightning.data.reading.parsed_row import FIX_ROW, ParsedRow, Row, shorten
from pera_lightning.errors import DataError, shown
from pera_lightning.storage.regular_file import open_regular

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

MOST_COLUMNS = 1_000
"""Of values: a list of objects with two fields has two."""
LONGEST_FOOTER = 16 << 20
SPARE = 64 << 20
"""Bytes that every file may hold, however small it is."""
MOST_UNPACKED, MOST_REPEATED = 100, 1_000
"""Bytes for each byte of the file: without compression, and where repeated texts are written out."""
MOST_VALUES, SPARE_VALUES = 20, 10_000_000
"""Values for each byte of the file, and those that every file may hold."""
_ROWS_AT_ONCE = 256
_MAGIC = b"PAR1"
_JSON = "arrow.json"

Decode = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Unread:
    """Stands in a row for a value that is not read, because its column holds no texts or numbers.

    Args:
        kind: The column's type.
    """

    kind: str

    def __str__(self) -> str:
        return f"of a column of {self.kind}, where texts, numbers, lists and objects are read"


@dataclass(frozen=True, slots=True)
class _Columns:
    """What is read of a file, by the names of its outermost columns."""

    read: dict[str, Decode]
    unread: dict[str, Unread]
    repeated: list[str]
    """Paths of the texts that are stored once for many rows."""


def read_parquet(path: Path) -> Iterator[ParsedRow]:
    """Reads the rows of a file lazily.

    Raises:
        DataError: The file is damaged or beyond the bounds, or has no column that is read.
    """
    with _told_if_damaged(path), open_regular(path) as file:
        size = _checked_size(path, file)
        columns = _columns(path, file, size)
    return _rows(path, columns, SPARE + MOST_REPEATED * size)


def _checked_size(path: Path, file: BinaryIO) -> int:
    """The file's size; its end tells how long the footer is, which is read whole."""
    size = file.seek(0, 2)
    file.seek(max(size - 8, 0))
    end = file.read(8)
    footer = int.from_bytes(end[:4], "little")
    if end[4:] == _MAGIC and footer > LONGEST_FOOTER:
        raise _beyond(path, f"a footer of {footer:,} bytes", f"at most {LONGEST_FOOTER:,}")
    file.seek(0)
    return size


def _columns(path: Path, file: BinaryIO, size: int) -> _Columns:
    import pyarrow.parquet

    opened = pyarrow.parquet.ParquetFile(file)
    if opened.metadata.num_columns > MOST_COLUMNS:
        raise _beyond(path, f"{opened.metadata.num_columns:,} columns", f"at most {MOST_COLUMNS:,}")
    repeated = _check_chunks(path, opened.metadata, size)
    schema = opened.schema_arrow
    twice = next((name for name in schema.names if schema.names.count(name) > 1), None)
    if twice is not None:
        raise DataError(
            f"{path} names a column twice.", got=shown(twice), expected="different names", fix="rename one of them"
        )
    read = {field.name: _decoder(field.type) for field in schema if _is_read(field.type)}
    unread = {field.name: Unread(shorten(field.type)) for field in schema if field.name not in read}
    if not read:
        raise DataError(
            f"{path} holds no column that can be read.",
            got=", ".join(f"{name!r} of {kind.kind}" for name, kind in list(unread.items())[:3]) or "no columns",
            expected="columns of texts, numbers, lists or objects of these",
            fix="convert the file, for example to JSON Lines",
        )
    return _Columns(read, unread, repeated)


def _check_chunks(path: Path, metadata: pyarrow.parquet.FileMetaData, size: int) -> list[str]:
    """Check what the columns would unpack to; the paths of those that store repeated texts once."""
    unpacked = values = 0
    repeated: dict[str, None] = {}
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for index in range(row_group.num_columns):
            chunk = row_group.column(index)
            unpacked += max(chunk.total_uncompressed_size, 0)
            values += max(chunk.num_values, 0)
            if chunk.physical_type == "BYTE_ARRAY" and any("DICTIONARY" in kind for kind in chunk.encodings):
                repeated[chunk.path_in_schema] = None
    for found, most, what in (
        (unpacked, SPARE + MOST_UNPACKED * size, "bytes"),
        (values, SPARE_VALUES + MOST_VALUES * size, "values"),
    ):
        if found > most:
            raise _beyond(path, f"{size:,} bytes that unpack to {found:,} {what}", f"at most {most:,} {what}")
    return list(repeated)


def _is_read(kind: pyarrow.DataType) -> bool:
    """Whether values of a type are texts, numbers, truth values, nothing, or lists and objects of these."""
    import pyarrow

    types = pyarrow.types
    if isinstance(kind, pyarrow.BaseExtensionType):
        return bool(kind.extension_name == _JSON)
    if types.is_dictionary(kind):
        return _is_read(kind.value_type)
    if types.is_struct(kind):
        return all(_is_read(kind.field(index).type) for index in range(kind.num_fields))
    if types.is_nested(kind):
        return not (types.is_map(kind) or types.is_union(kind)) and _is_read(kind.value_type)
    text = types.is_string(kind) or types.is_large_string(kind) or str(kind) == "string_view"
    return bool(text or types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)) or bool(
        types.is_null(kind)
    )


def _rows(path: Path, columns: _Columns, most: int) -> Iterator[ParsedRow]:
    import pyarrow.parquet

    number = 0
    with _told_if_damaged(path), open_regular(path) as file:
        opened = pyarrow.parquet.ParquetFile(file, read_dictionary=columns.repeated)
        for batch in opened.iter_batches(_ROWS_AT_ONCE, columns=list(columns.read), use_threads=False):
            for index in range(batch.num_rows):
                number += 1
                row = _row(f"{path}, row {number}", batch.slice(index, 1), columns)
                most -= _size(row.fields) if isinstance(row, Row) else 0
                if most < 0:
                    raise _beyond(path, f"more than that in the first {number:,} rows", "texts of usual repetition")
                yield row


def _row(where: str, batch: pyarrow.RecordBatch, columns: _Columns) -> ParsedRow:
    try:
        # Columns of like names may have come along: a name with a dot is also a path.
        fields = {name: decode(batch.column(name)[0].as_py()) for name, decode in columns.read.items()}
    except Exception as error:  # text that is none, and whatever else a value cannot become
        return DataError(
            f"{where}: a value cannot be read.",
            got=f"{type(error).__name__}: {shorten(error)}",
            expected="texts in UTF-8, numbers, lists and objects of these",
            fix=FIX_ROW,
        )
    return Row(where, fields | columns.unread)


def _decoder(kind: pyarrow.DataType) -> Decode:
    """What makes a value of the type's texts of JSON, as `datasets` stores values of mixed types."""
    import pyarrow

    if isinstance(kind, pyarrow.BaseExtensionType):
        return lambda value: None if value is None else json.loads(value)
    if _JSON not in str(kind):
        return lambda value: value
    if pyarrow.types.is_struct(kind):
        inner = {kind.field(index).name: _decoder(kind.field(index).type) for index in range(kind.num_fields)}
        return lambda value: value and {name: decode(value[name]) for name, decode in inner.items()}
    decode = _decoder(kind.value_type)
    if pyarrow.types.is_dictionary(kind):
        return decode
    return lambda value: value and [decode(item) for item in value]


def _size(value: Any) -> int:
    """About how many bytes a value has."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    if isinstance(value, list):
        return 8 * len(value) if not value or isinstance(value[0], int | float) else sum(map(_size, value))
    return 8


def _beyond(path: Path, got: str, expected: str) -> DataError:
    return DataError(
        f"{path} is no parquet file of usual data: it would take far more than its size.",
        got=got,
        expected=expected,
        fix="write the file again with the columns that are used, or convert it to JSON Lines",
    )


@contextmanager
def _told_if_damaged(path: Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # whatever pyarrow makes of a damaged file
        raise DataError(
            f"{path} cannot be read as parquet.",
            got=f"{type(error).__name__}: {shorten(error)}",
            expected="a complete parquet file",
            fix="write or download the file again",
        ) from error
