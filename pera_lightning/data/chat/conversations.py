"""Rows checked and turned into conversations: prompt/completion, Alpaca and chat messages."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from pera_lightning.data.reading.parsed_row import FIX_ROW, ParsedRow, Row, refuse_half_characters, shorten
from pera_lightning.errors import DataError
from pera_lightning.run_log.messages import rank_zero_info
from pera_lightning.visible_text import visible_logger

log = visible_logger(__name__)

RowFormat = Literal["auto", "prompt_completion", "alpaca", "messages"]
"""What users call them; a literal, so that `--help` can list them. All but "auto" have an entry in `FORMATS`."""
OnBadRow = Literal["error", "skip"]
Message = dict[str, Any]

ROLES = ("system", "user", "assistant")
TEMPLATE_FIELDS = ("tools", "documents")
"""Fields of a row, beside those of its format, that chat templates write."""
_OPTIONS_FIELD = "chat_template_kwargs"
_ROWS_TO_DETECT = 20
_ROWS_TO_NAME = 5


@dataclass(frozen=True, slots=True)
class Conversation:
    """A checked conversation that ends with an assistant turn.

    Args:
        where: Where its row stands, for messages.
        messages: Turns with the keys `role` and `content`, and those that the row has beside them.
        variables: What the row gives to the chat template beside the messages.
    """

    where: str
    messages: list[Message]
    variables: Mapping[str, Any] = field(default_factory=dict)


class BadRows:
    """Raises at the first bad row, or counts bad rows, as `on_bad_row` says."""

    def __init__(self, on_bad_row: OnBadRow) -> None:
        self._on_bad_row = on_bad_row
        self.count = 0
        self.first: list[DataError] = []

    def handle(self, error: DataError) -> None:
        """Raises the error of a bad row, or counts it."""
        if self._on_bad_row == "error":
            raise error
        if self.count < _ROWS_TO_NAME:
            self.first.append(error)
        self.count += 1

    def describe(self) -> str:
        """How many rows are bad, and what is wrong with the first of them."""
        what = [str(error).splitlines()[0] for error in self.first]
        more = f"; and {self.count - len(what)} more" if self.count > len(what) else ""
        return f"{self.count} bad {'row' if self.count == 1 else 'rows'}: {' '.join(what)}{more}"

    @rank_zero_only
    def report(self, split: str) -> None:
        """Logs how many rows of the split were skipped, with what is wrong with the first of them."""
        if self.count:
            log.warning("%s: skipped %s", split, self.describe())


def read_conversations(
    source: str,
    rows: Iterable[ParsedRow],
    row_format: RowFormat,
    bad_rows: BadRows,
    ignore_fields: Collection[str] = (),
) -> Iterator[Conversation]:
    """Yields the conversations of one source. Fields that take no part in them are logged, each once.

    Args:
        source: Name of the file or data set.
        rows: Its rows.
        row_format: Their format; `"auto"` finds it from the fields of the first rows and logs it.
        bad_rows: What happens to rows that cannot be used.
        ignore_fields: Fields of messages and rows to leave out.

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
    found = FORMATS[row_format]
    known = {*found.required, *found.optional, *TEMPLATE_FIELDS, _OPTIONS_FIELD, *ignore_fields}
    for row in itertools.chain(first, rows):
        try:
            if isinstance(row, DataError):
                raise row
            _name_unused(source, row, known)
            messages = to_messages(row, row_format, ignore_fields)
            conversation = Conversation(row.where, messages, dict(_variables(row, ignore_fields)))
        except DataError as error:
            bad_rows.handle(error)
        else:
            yield conversation


def to_messages(row: Row, row_format: RowFormat, ignore_fields: Collection[str] = ()) -> list[Message]:
    """Checks a row of a known format and returns it as messages, without the fields to ignore.

    Raises:
        DataError: If a field is missing, of the wrong type or empty.
    """
    return FORMATS[row_format].convert(row, ignore_fields)


def _name_unused(source: str, row: Row, known: set[str]) -> None:
    unused = [name for name in row.fields if name not in known]
    if unused:
        known.update(unused)
        rank_zero_info(f"{source}: no use is made of the fields {', '.join(map(str, unused))}")


def _variables(row: Row, ignore_fields: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Yields what the chat template gets beside the messages; empty fields count as none."""
    for name in TEMPLATE_FIELDS:
        if name not in ignore_fields and row.fields.get(name):
            yield name, _listed(row, name)
    options = {} if _OPTIONS_FIELD in ignore_fields else row.fields.get(_OPTIONS_FIELD) or {}
    taken = {*TEMPLATE_FIELDS, "messages", "conversation", "chat_template", "tokenize", "add_generation_prompt"}
    if not isinstance(options, Mapping) or not taken.isdisjoint(options):
        expected = f"an object without {', '.join(sorted(taken))}"
        raise _bad_field(row.where, row.fields, _OPTIONS_FIELD, expected)
    for name, value in options.items():
        if name not in ignore_fields and value is not None:
            refuse_half_characters(row.where, _OPTIONS_FIELD, value)
            yield name, value


def _listed(row: Row, name: str) -> list[Any]:
    value = row.fields[name]
    if isinstance(value, str):
        # Tables hold lists of objects with different keys best as text.
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, list):
        raise _bad_field(row.where, row.fields, name, "a list, or the text of one in JSON")
    refuse_half_characters(row.where, name, value)
    return value


def _detect_format(source: str, rows: Sequence[ParsedRow]) -> RowFormat:
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


def _from_prompt_completion(row: Row, _: Collection[str]) -> list[Message]:
    return [_turn("user", _text(row, "prompt")), _turn("assistant", _text(row, "completion"))]


def _from_alpaca(row: Row, _: Collection[str]) -> list[Message]:
    request, context = _text(row, "instruction"), row.fields.get("input")
    if context is not None and not isinstance(context, str):
        raise _bad_field(row.where, row.fields, "input", "a string, or no such field")
    refuse_half_characters(row.where, "input", context)
    if context and context.strip():
        request = f"{request}\n\n{context}"
    return [_turn("user", request), _turn("assistant", _text(row, "output"))]


def _from_messages(row: Row, ignore_fields: Collection[str]) -> list[Message]:
    turns = row.fields.get("messages")
    if not isinstance(turns, list) or not turns:
        raise _bad_field(row.where, row.fields, "messages", "a non-empty list of {role, content}")
    messages: list[Message] = []
    for index, turn in enumerate(turns):
        previous = messages[-1]["role"] if messages else None
        messages.append(_checked_turn(f"{row.where}, messages[{index}]", turn, previous, ignore_fields))
    if messages[-1]["role"] != "assistant":
        last = f"{row.where}, messages[{len(turns) - 1}]"
        raise _bad_field(last, messages[-1], "role", "a conversation that ends with an assistant turn")
    return messages


def _checked_turn(where: str, turn: object, previous_role: str | None, ignore_fields: Collection[str]) -> Message:
    if not isinstance(turn, Mapping):
        row, _, name = where.rpartition(", ")
        raise _bad_field(row, {name: turn}, name, "{role, content}")
    role, content = turn.get("role"), turn.get("content")
    if role not in ROLES:
        raise _bad_field(where, turn, "role", f"one of {', '.join(ROLES)}")
    if role == "system" and previous_role is not None:
        raise _bad_field(where, turn, "role", "a system turn only at the beginning")
    if role == "assistant" and previous_role != "user":
        raise _bad_field(where, turn, "role", "a user turn before every assistant turn")
    more = _more_of(turn, ignore_fields)
    # What calls a tool often says nothing.
    content = "" if content is None and "tool_calls" in more else content
    if not isinstance(content, str) or not (content.strip() or "tool_calls" in more):
        raise _bad_field(where, turn, "content", "a non-empty string")
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
        raise _bad_field(row.where, row.fields, name, "a non-empty string")
    refuse_half_characters(row.where, name, value)
    return value


def _bad_field(where: str, owner: Mapping[str, Any], name: str, expected: str) -> DataError:
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
