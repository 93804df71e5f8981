"""Text files as lines of UTF-8, each with its number, or as one row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pera_lightning.data.reading.parsed_row import ParsedRow, Row
from pera_lightning.errors import DataError


def read_text(path: Path) -> Iterator[ParsedRow]:
    """Yields the whole text as one row, with the field `text`."""
    yield Row(str(path), {"text": whole_text(path)})


def whole_text(path: Path) -> str:
    """The text of a file, without a byte order mark.

    Raises:
        DataError: It is no UTF-8, or holds zero bytes.
    """
    return "".join(line for _, line in decoded_lines(path))


def decoded_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (number, line) with the line end kept; a byte order mark is dropped.

    Raises:
        DataError: A line is no UTF-8, or holds zero bytes.
    """
    for number, line in lines_or_errors(path):
        if isinstance(line, DataError):
            raise line
        yield number, line


def lines_or_errors(path: Path) -> Iterator[tuple[int, str | DataError]]:
    """The same, with the error in the place of a line that cannot be read."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            yield number, _decoded(f"{path}, line {number}", line, "utf-8-sig" if number == 1 else "utf-8")


def _decoded(where: str, line: bytes, encoding: str) -> str | DataError:
    if b"\0" in line:
        return DataError(
            f"{where}: this is no text.",
            got=f"a zero byte at position {line.index(0) + 1} of the line",
            expected="a text file in UTF-8",
            fix="save the file as UTF-8 (UTF-16 has such bytes), or write or copy it again",
        )
    try:
        return line.decode(encoding)
    except UnicodeDecodeError as error:
        return DataError(
            f"{where}: this is not UTF-8.",
            got=f"the byte 0x{line[error.start]:02x} at position {error.start + 1} of the line",
            expected="a text file in UTF-8",
            fix="save the file as UTF-8",
        )
