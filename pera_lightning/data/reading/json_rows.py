"""Rows of JSON and JSON Lines files.

Parsed here rather than by `datasets`, because an error message should name the line.
"""

from __future__ import annotations

import decimal
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pera_lightning.data.reading.parsed_row import FIX_ROW, ParsedRow, Row, shorten
from pera_lightning.data.reading.text_lines import lines_or_errors, whole_text
from pera_lightning.errors import DataError

_SEPARATOR = re.compile(r"[\s,]*")
_LAYOUTS = "an array of objects, or one object per line"
_DEPTH = 100
"""Most lists and objects within each other; what looks at values one within the other stays clear of Python's limit."""


def read_jsonl(path: Path) -> Iterator[ParsedRow]:
    """Yields the rows of a file with one object per line."""
    for number, line in lines_or_errors(path):
        if isinstance(line, DataError):
            yield line
        elif line.strip():
            yield _parse_line(f"{path}, line {number}", line)


def read_json(path: Path) -> Iterator[ParsedRow]:
    """Yields the rows of a file with an array of objects, or with one object per line.

    Raises:
        DataError: The array as a whole cannot be read.
    """
    if not _begins_an_array(path):
        # Many tools write one object per line into a file that they call .json.
        yield from read_jsonl(path)
        return
    text = whole_text(path)
    try:
        _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}, column {error.colno}: this is not JSON ({error.msg}).",
            got=shorten(text[max(error.pos - 30, 0) : error.pos + 30]),
            expected=_LAYOUTS,
            fix="correct the file at this place",
        ) from error
    except RecursionError:
        # Which item it is, and that it cannot be left out, shows where the items are read one by one.
        pass
    for line, item in _array_items(str(path), text):
        yield _object_row(f"{path}, line {line}", item)


class _Object(dict[str, Any]):
    """A JSON object that remembers a key that it holds twice."""

    twice: str | None = None

    @classmethod
    def of(cls, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) == len(pairs):
            return found
        marked, seen = cls(found), set[str]()
        marked.twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        return marked


def _integer(digits: str) -> int | decimal.Decimal:
    """An integer; one beyond Python's limit of digits is kept as a number that nothing takes for a text."""
    limit = sys.get_int_max_str_digits()
    return int(digits) if not limit or len(digits) <= limit else decimal.Decimal(digits)


_DECODER = json.JSONDecoder(object_pairs_hook=_Object.of, parse_int=_integer)


def _parse_line(where: str, line: str) -> ParsedRow:
    try:
        return _object_row(where, _DECODER.decode(line.rstrip()))
    except json.JSONDecodeError as error:
        return DataError(
            f"{where}, column {error.colno}: this is not JSON ({error.msg}).",
            got=shorten(line),
            expected=_LAYOUTS,
            fix="correct the line, or set on_bad_row: skip to leave such rows out",
        )
    except RecursionError:
        return _too_deep(where, line, FIX_ROW)


def _begins_an_array(path: Path) -> bool:
    for _, line in lines_or_errors(path):
        if isinstance(line, DataError):
            return False
        if line.strip():
            return line.lstrip().startswith("[")
    return False


def _array_items(name: str, text: str) -> Iterator[tuple[int, Any]]:
    """Yields (line, item) of a text that is a valid JSON array, but for nesting without end."""
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
        try:
            item, item_start = _DECODER.raw_decode(text, item_start)
        except RecursionError:
            fix = "correct the file at this place; in JSON Lines such a row could be left out"
            raise _too_deep(f"{name}, line {line}", text[item_start : item_start + 100], fix) from None
        yield line, item


def _object_row(where: str, value: object) -> ParsedRow:
    if not isinstance(value, dict):
        return DataError(
            f"{where}: this is not a row.",
            got=f"{type(value).__name__} {shorten(value)}",
            expected="a JSON object with the fields of the row",
            fix=FIX_ROW,
        )
    level: list[Any] = [value]
    for _ in range(_DEPTH):
        twice = next((item.twice for item in level if isinstance(item, _Object)), None)
        if twice is not None:
            return DataError(
                f"{where}: an object holds a key twice, of which only the last would count.",
                got=f"the key {twice!r} twice",
                expected="different keys",
                fix=FIX_ROW,
            )
        level = [inner for item in level for inner in _inside(item)]
        if not level:
            return Row(where, value)
    return _too_deep(where, "{...", FIX_ROW)


def _inside(item: Any) -> list[Any]:
    values = item.values() if isinstance(item, dict) else item
    return [value for value in values if isinstance(value, dict | list)]


def _too_deep(where: str, text: str, fix: str) -> DataError:
    return DataError(
        f"{where}: the JSON is nested too deeply.",
        got=shorten(text),
        expected=f"at most {_DEPTH} lists and objects within each other",
        fix=fix,
    )
