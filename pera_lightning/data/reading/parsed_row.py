"""A row of a data file with the place it came from, and checks of what a row may hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pera_lightning.errors import DataError

FIX_ROW = "correct the row, or set on_bad_row: skip to leave such rows out"


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


def shorten(value: object, width: int = 80) -> str:
    """Returns the value in one line of at most `width` characters, for messages."""
    # Of a long text only the beginning is looked at; half of a character is shown as its number.
    text = " ".join(str(value)[: 20 * width].split()).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= width else text[: width - 3] + "..."


def refuse_half_characters(where: str, name: str, value: object) -> None:
    """Raises unless all texts of a field can be written as UTF-8, as every tokenizer needs.

    Args:
        where: Where its row stands.
        name: Of the field.
        value: A text, or lists and dicts with texts.

    Raises:
        DataError: A text holds a lone surrogate: half of a character that JSON wrote in two.
    """
    for text in _texts(value):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{where}, field {name!r}: the text holds half of a character.",
                got=f"a lone surrogate, \\u{ord(text[error.start]):04x}, at position {error.start + 1} of "
                f"{shorten(repr(text))}",
                expected="both halves, such as \\ud83d\\ude00, or the character itself",
                fix=FIX_ROW,
            ) from None


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from (*_texts(key), *_texts(inner))
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
