"""Formats of rows, prompt/completion, Alpaca and chat messages: their fields, and how they become messages.

Knows no lightning: the command line looks at the first rows of a file before it imports that.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from pera_lightning.data.reading.parsed_row import FIX_ROW, ParsedRow, Row, refuse_half_characters, shorten
from pera_lightning.errors import DataError

RowFormat = Literal["auto", "prompt_completion", "alpaca", "messages"]
"""What users call them; a literal, so that `--help` can list them. All but "auto" have an entry in `FORMATS`."""
Message = dict[str, Any]

ROLES = ("system", "user", "assistant")
ROWS_TO_DETECT = 20
"""Of the first rows of a source, by which its format is found."""


def to_messages(row: Row, row_format: RowFormat, ignore_fields: Collection[str] = ()) -> list[Message]:
    """Checks a row of a known format and returns it as messages, without the fields to ignore.

    Raises:
        DataError: If a field is missing, of the wrong type or empty.
    """
    return FORMATS[row_format].convert(row, ignore_fields)


def detect_format(rows: Sequence[ParsedRow]) -> RowFormat:
    """Finds the format of rows by the fields of the first that has those of one.

    Raises:
        DataError: None has.
    """
    usable = [row for row in rows if isinstance(row, Row)]
    for row, (name, row_format) in itertools.product(usable, FORMATS.items()):
        if all(field in row.fields for field in row_format.required):
            return name
    if not usable:
        raise next(row for row in rows if isinstance(row, DataError))
    known = "; ".join(f"{' and '.join(row_format.required)} ({name})" for name, row_format in FORMATS.items())
    raise DataError(
        f"{usable[0].where}: the format of the rows is not recognised.",
        got=f"the fields {', '.join(map(str, usable[0].fields)) or '(none)'}",
        expected=f"the fields {known}",
        fix="rename the fields of the file",
    )


def check_fields(rows: Sequence[ParsedRow], row_format: RowFormat) -> None:
    """Refuses what reading the whole source would refuse by its first row's fields; their values are left to that.

    Args:
        rows: The first ones, some of them.
        row_format: Their format, or "auto".

    Raises:
        DataError: No format is recognised, or a field of the given one is missing.
    """
    if row_format == "auto":
        detect_format(rows)
    elif isinstance(rows[0], Row) and not rows[0].fields.keys() >= set(FORMATS[row_format].required):
        to_messages(rows[0], row_format)


def _from_prompt_completion(row: Row, _: Collection[str]) -> list[Message]:
    return [_turn("user", _text(row, "prompt")), _turn("assistant", _text(row, "completion"))]


def _from_alpaca(row: Row, _: Collection[str]) -> list[Message]:
    request, context = _text(row, "instruction"), row.fields.get("input")
    if context is not None and not isinstance(context, str):
        raise bad_field(row.where, row.fields, "input", "a string, or no such field")
    refuse_half_characters(row.where, "input", context)
    if context and context.strip():
        request = f"{request}\n\n{context}"
    return [_turn("user", request), _turn("assistant", _text(row, "output"))]


def _from_messages(row: Row, ignore_fields: Collection[str]) -> list[Message]:
    turns = row.fields.get("messages")
    if not isinstance(turns, list) or not turns:
        raise bad_field(row.where, row.fields, "messages", "a non-empty list of {role, content}")
    messages: list[Message] = []
    for index, turn in enumerate(turns):
        previous = messages[-1]["role"] if messages else None
        messages.append(_checked_turn(f"{row.where}, messages[{index}]", turn, previous, ignore_fields))
    if messages[-1]["role"] != "assistant":
        last = f"{row.where}, messages[{len(turns) - 1}]"
        raise bad_field(last, messages[-1], "role", "a conversation that ends with an assistant turn")
    return messages


def _checked_turn(where: str, turn: object, previous_role: str | None, ignore_fields: Collection[str]) -> Message:
    if not isinstance(turn, Mapping):
        row, _, name = where.rpartition(", ")
        raise bad_field(row, {name: turn}, name, "{role, content}")
    role, content = turn.get("role"), turn.get("content")
    if role not in ROLES:
        raise bad_field(where, turn, "role", f"one of {', '.join(ROLES)}")
    if role == "system" and previous_role is not None:
        raise bad_field(where, turn, "role", "a system turn only at the beginning")
    if role == "assistant" and previous_role != "user":
        raise bad_field(where, turn, "role", "a user turn before every assistant turn")
    more = _more_of(turn, ignore_fields)
    # What calls a tool often says nothing.
    content = "" if content is None and "tool_calls" in more else content
    if not isinstance(content, str) or not (content.strip() or "tool_calls" in more):
        raise bad_field(where, turn, "content", "a non-empty string")
    for key, value in (("content", content), *more.items()):
        refuse_half_characters(where, key, value)
    return {**_turn(role, content), **more}


def _more_of(turn: Mapping[str, Any], ignore_fields: Collection[str]) -> dict[str, Any]:
    """What a message has beside role and content; tables fill up with None what only other messages have."""
    more = {key: value for key, value in turn.items() if key not in ("role", "content", *ignore_fields)}
    return {key: value for key, value in more.items() if value not in (None, "", [], {})}


def _turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _text(row: Row, name: str) -> str:
    value = row.fields.get(name)
    if not isinstance(value, str) or not value.strip():
        raise bad_field(row.where, row.fields, name, "a non-empty string")
    refuse_half_characters(row.where, name, value)
    return value


def bad_field(where: str, owner: Mapping[str, Any], name: str, expected: str) -> DataError:
    """The error of a field that cannot be used, or is not there.

    Args:
        where: Where the row or message stands.
        owner: Its fields.
        name: Of the field.
        expected: What it would have to be.
    """
    if name not in owner:
        got = f"no such field (fields: {', '.join(map(str, owner)) or 'none'})"
    elif isinstance(owner[name], str) and not owner[name].strip():
        got = "an empty string"
    else:
        got = f"{type(owner[name]).__name__} {shorten(repr(owner[name]))}"
    return DataError(f"{where}, field {name!r}: cannot be used.", got=got, expected=expected, fix=FIX_ROW)


class Format(NamedTuple):
    """A format of rows: everything that tells one from another."""

    required: tuple[str, ...]
    """The fields that a row of it has, by which it is recognised."""
    convert: Callable[[Row, Collection[str]], list[Message]]
    """From a row and the fields to ignore to checked messages."""
    optional: tuple[str, ...] = ()
    """Fields that it makes use of where they are there."""
    never_ignored: tuple[str, ...] = ()
    """Fields that a conversation is made of, which `ignore_fields` must not name."""


FORMATS: dict[RowFormat, Format] = {
    "messages": Format(("messages",), _from_messages, never_ignored=("messages", "role", "content")),
    "prompt_completion": Format(("prompt", "completion"), _from_prompt_completion),
    "alpaca": Format(("instruction", "output"), _from_alpaca, optional=("input",)),
}
"""Name -> format, in the order in which rows are tried and messages list them."""
