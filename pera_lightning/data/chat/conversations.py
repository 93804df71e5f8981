"""Rows of files checked and turned into conversations, and what becomes of bad ones."""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from pera_lightning.data.chat.row_formats import (
    FORMATS,
    ROWS_TO_DETECT,
    Message,
    RowFormat,
    bad_field,
    detect_format,
    to_messages,
)
from pera_lightning.data.reading.parsed_row import ParsedRow, Row, refuse_half_characters
from pera_lightning.errors import DataError
from pera_lightning.run_log.messages import rank_zero_info
from pera_lightning.visible_text import visible_logger

log = visible_logger(__name__)

OnBadRow = Literal["error", "skip"]

TEMPLATE_FIELDS = ("tools", "documents")
"""Fields of a row, beside those of its format, that chat templates write."""
_OPTIONS_FIELD = "chat_template_kwargs"
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

    @property
    def own_system_prompt(self) -> str | None:
        """Its system message; None without one."""
        first = self.messages[0]
        return first["content"] if first["role"] == "system" else None


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
    first = list(itertools.islice(rows, ROWS_TO_DETECT))
    if not first:
        raise DataError(
            f"{source} is empty.",
            got="no rows",
            expected="at least one row",
            fix="check how the file was written, or leave it out",
        )
    if row_format == "auto":
        row_format = detect_format(first)
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
        raise bad_field(row.where, row.fields, _OPTIONS_FIELD, expected)
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
        raise bad_field(row.where, row.fields, name, "a list, or the text of one in JSON")
    refuse_half_characters(row.where, name, value)
    return value
