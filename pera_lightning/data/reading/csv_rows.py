"""Rows of CSV files.

Parsed here rather than by `datasets`, because an error message should name the line.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from pera_lightning.data.reading.parsed_row import ParsedRow, Row
from pera_lightning.data.reading.text_lines import decoded_lines
from pera_lightning.errors import DataError

_CSV_LIMIT = 2**31 - 1
"""Most characters of a field: what the C code of `csv` can count everywhere. Its default is 131,072."""


def read_csv(path: Path) -> Iterator[ParsedRow]:
    """Yields the rows below the header; one that does not fit it as an error.

    Raises:
        DataError: It is no CSV, or its header names a field twice.
    """
    reader = csv.reader((line for _, line in decoded_lines(path)), strict=True)
    header: list[str] | None = None
    while True:
        where = f"{path}, line {reader.line_num + 1}"
        try:
            values = _next_record(reader)
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


def _next_record(reader: Iterator[list[str]]) -> list[str]:
    # The limit is one for the whole process, so that it is given back.
    limit = csv.field_size_limit(_CSV_LIMIT)
    try:
        return next(reader)
    finally:
        csv.field_size_limit(limit)


def _csv_header(path: Path, names: list[str]) -> list[str]:
    if len(set(names)) != len(names):
        raise DataError(
            f"{path}, line 1: the header names a field twice.",
            got=", ".join(names),
            expected="different names",
            fix="rename or remove one of the columns",
        )
    return names
