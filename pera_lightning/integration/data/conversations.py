"""Rows checked and turned into conversations: prompt/completion, Alpaca and chat messages."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only

from pera_lightning.errors import DataError
from pera_lightning.integration.data.rows import ParsedRow, Row, shorten

log = logging.getLogger(__name__)

RowFormat = Literal["auto", "prompt_completion", "alpaca", "messages"]
OnBadRow = Literal["error", "skip"]
Message = dict[str, str]

ROLES = ("system", "user", "assistant")
_REQUIRED_FIELDS: dict[RowFormat, tuple[str, ...]] = {
    "messages": ("messages",),
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
}
_ROWS_TO_DETECT = 20
FIX_ROW = "correct the row, or set on_bad_row: skip to leave such rows out"


@dataclass(frozen=True, slots=True)
class Conversation:
    """A checked conversation that ends with an assistant turn.

    Args:
        where: Where its row stands, for messages.
        messages: Turns with the keys `role` and `content`.
    """

    where: str
    messages: list[Message]


class BadRows:
    """Raises at the first bad row, or counts bad rows, as `on_bad_row` says."""

    def __init__(self, on_bad_row: OnBadRow) -> None:
        self._on_bad_row = on_bad_row
        self.count = 0
        self.first: DataError | None = None

    def handle(self, error: DataError) -> None:
        """Raises the error of a bad row, or counts it."""
        if self._on_bad_row == "error":
            raise error
        self.first = self.first or error
        self.count += 1

    @rank_zero_only
    def report(self, split: str) -> None:
        """Logs how many rows of the split were skipped, with the first of them."""
        if self.count:
            log.warning("%s: %d bad rows were skipped. The first: %s", split, self.count, self.first)


def read_conversations(
    source: str, rows: Iterable[ParsedRow], row_format: RowFormat, bad_rows: BadRows
) -> Iterator[Conversation]:
    """Yields the conversations of one source.

    Args:
        source: Name of the file or data set.
        rows: Its rows.
        row_format: Their format; `"auto"` finds it from the fields of the first rows and logs it.
        bad_rows: What happens to rows that cannot be used.

    Raises:
        DataError: If there are no rows, if their format is not recognised, or for a bad row that is not
            to be skipped.
    """
    rows = iter(rows)
    first = list(itertools.islice(rows, _ROWS_TO_DETECT))
    if not first:
        raise DataError(
            f"{source} is empty.",
            got="no rows",
            expected="at least one row",
            fix="check how the file was written, or leave it out",
        )
    if row_format == "auto":
        row_format = _detect_format(source, first)
        rank_zero_info(f"{source}: rows are read as {row_format}")
    for row in itertools.chain(first, rows):
        try:
            if isinstance(row, DataError):
                raise row
            conversation = Conversation(row.where, to_messages(row, row_format))
        except DataError as error:
            bad_rows.handle(error)
        else:
            yield conversation


def to_messages(row: Row, row_format: RowFormat) -> list[Message]:
    """Checks a row of a known format and returns it as messages.

    Raises:
        DataError: If a field is missing, of the wrong type or empty.
    """
    return _CONVERTERS[row_format](row)


def _detect_format(source: str, rows: Sequence[ParsedRow]) -> RowFormat:
    usable = [row for row in rows if isinstance(row, Row)]
    for row, (row_format, required) in itertools.product(usable, _REQUIRED_FIELDS.items()):
        if all(name in row.fields for name in required):
            return row_format
    if not usable:
        raise next(row for row in rows if isinstance(row, DataError))
    known = "; ".join(f"{' and '.join(names)} ({name})" for name, names in _REQUIRED_FIELDS.items())
    raise DataError(
        f"{usable[0].where}: the format of the rows is not recognised.",
        got=f"the fields {', '.join(map(str, usable[0].fields)) or '(none)'}",
        expected=f"the fields {known}",
        fix="rename the fields of the file",
    )


def _from_prompt_completion(row: Row) -> list[Message]:
    return [_turn("user", _text(row, "prompt")), _turn("assistant", _text(row, "completion"))]


def _from_alpaca(row: Row) -> list[Message]:
    request, context = _text(row, "instruction"), row.fields.get("input")
    if context is not None and not isinstance(context, str):
        raise _bad_field(row.where, row.fields, "input", "a string, or no such field")
    if context and context.strip():
        request = f"{request}\n\n{context}"
    return [_turn("user", request), _turn("assistant", _text(row, "output"))]


def _from_messages(row: Row) -> list[Message]:
    turns = row.fields.get("messages")
    if not isinstance(turns, list) or not turns:
        raise _bad_field(row.where, row.fields, "messages", "a non-empty list of {role, content}")
    messages: list[Message] = []
    for index, turn in enumerate(turns):
        messages.append(_checked_turn(row, index, turn, messages[-1]["role"] if messages else None))
    if messages[-1]["role"] != "assistant":
        last = f"{row.where}, messages[{len(turns) - 1}]"
        raise _bad_field(last, messages[-1], "role", "a conversation that ends with an assistant turn")
    return messages


def _checked_turn(row: Row, index: int, turn: object, previous_role: str | None) -> Message:
    where = f"{row.where}, messages[{index}]"
    if not isinstance(turn, Mapping):
        raise _bad_field(row.where, {f"messages[{index}]": turn}, f"messages[{index}]", "{role, content}")
    role, content = turn.get("role"), turn.get("content")
    if role not in ROLES:
        raise _bad_field(where, turn, "role", f"one of {', '.join(ROLES)}")
    if role == "system" and previous_role is not None:
        raise _bad_field(where, turn, "role", "a system turn only at the beginning")
    if role == "assistant" and previous_role != "user":
        raise _bad_field(where, turn, "role", "a user turn before every assistant turn")
    if not isinstance(content, str) or not content.strip():
        raise _bad_field(where, turn, "content", "a non-empty string")
    return _turn(role, content)


def _turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _text(row: Row, name: str) -> str:
    value = row.fields.get(name)
    if not isinstance(value, str) or not value.strip():
        raise _bad_field(row.where, row.fields, name, "a non-empty string")
    return value


def _bad_field(where: str, owner: Mapping[str, Any], name: str, expected: str) -> DataError:
    if name not in owner:
        got = f"no such field (fields: {', '.join(map(str, owner)) or 'none'})"
    elif isinstance(owner[name], str) and not owner[name].strip():
        got = "an empty string"
    else:
        got = f"{type(owner[name]).__name__} {shorten(repr(owner[name]))}"
    return DataError(f"{where}, field {name!r}: cannot be used.", got=got, expected=expected, fix=FIX_ROW)


_CONVERTERS: dict[str, Callable[[Row], list[Message]]] = {
    "prompt_completion": _from_prompt_completion,
    "alpaca": _from_alpaca,
    "messages": _from_messages,
}
