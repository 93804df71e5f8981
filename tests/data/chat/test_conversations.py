from __future__ import annotations

import logging
from typing import Any, get_args

import pytest

from pera_lightning.data.chat.conversations import BadRows, read_conversations
from pera_lightning.data.chat.row_formats import FORMATS, Format, RowFormat, to_messages
from pera_lightning.data.instruction import InstructionDataModule
from pera_lightning.data.reading.parsed_row import Row
from pera_lightning.errors import DataError

QUESTION = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}


def rows(*fields: dict[str, Any]) -> list[Row]:
    return [Row(f"file, line {number}", row) for number, row in enumerate(fields, start=1)]


def read(*fields: dict[str, Any], row_format: str = "auto", on_bad_row: str = "error") -> list[Any]:
    conversations = read_conversations("file", rows(*fields), row_format, BadRows(on_bad_row))
    return [conversation.messages for conversation in conversations]


@pytest.mark.parametrize(
    ("fields", "row_format", "messages"),
    [
        ({"prompt": "q", "completion": "a"}, "prompt_completion", [QUESTION, ANSWER]),
        ({"instruction": "q", "output": "a"}, "alpaca", [QUESTION, ANSWER]),
        ({"instruction": "q", "input": " ", "output": "a"}, "alpaca", [QUESTION, ANSWER]),
        ({"instruction": "q", "input": None, "output": "a"}, "alpaca", [QUESTION, ANSWER]),
        (
            {"instruction": "q", "input": "x", "output": "a"},
            "alpaca",
            [{"role": "user", "content": "q\n\nx"}, ANSWER],
        ),
        ({"messages": [SYSTEM, QUESTION, ANSWER]}, "messages", [SYSTEM, QUESTION, ANSWER]),
        ({"messages": [QUESTION, ANSWER], "id": 3}, "messages", [QUESTION, ANSWER]),
        ({"messages": [{**QUESTION, "name": "n"}, ANSWER]}, "messages", [{**QUESTION, "name": "n"}, ANSWER]),
        ({"messages": [{**QUESTION, "name": None}, ANSWER]}, "messages", [QUESTION, ANSWER]),
    ],
)
def test_each_format_becomes_messages_and_is_detected(
    fields: dict[str, Any], row_format: str, messages: list[dict[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    assert to_messages(Row("", fields), row_format) == messages
    with caplog.at_level(logging.INFO):
        assert read(fields) == [messages]
    assert f"file: rows are read as {row_format}" in caplog.text


def test_a_broken_first_row_does_not_hide_the_format() -> None:
    good = {"prompt": "q", "completion": "a"}
    assert read({"prompt": "q"}, good, on_bad_row="skip") == [[QUESTION, ANSWER]]
    with pytest.raises(DataError, match=r"line 1, field 'completion'[\s\S]*no such field \(fields: prompt\)"):
        read({"prompt": "q"}, good)


def test_an_unknown_format_lists_the_fields() -> None:
    with pytest.raises(DataError, match=r"line 1: the format[\s\S]*question, answer[\s\S]*prompt and completion"):
        read({"question": "q", "answer": "a"})


def test_no_rows_are_an_error() -> None:
    with pytest.raises(DataError, match="file is empty"):
        read()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "", "completion": "a"}, r"field 'prompt'.*\s+got: +an empty string"),
        ({"prompt": " \n", "completion": "a"}, r"field 'prompt'.*\s+got: +an empty string"),
        ({"prompt": "q", "completion": None}, r"field 'completion'.*\s+got: +NoneType None"),
        ({"prompt": 5, "completion": "a"}, r"field 'prompt'.*\s+got: +int 5\s+expected: a non-empty string"),
        ({"instruction": "q", "output": ["a"]}, r"field 'output'.*\s+got: +list \['a'\]"),
        ({"instruction": "q", "input": 1, "output": "a"}, r"field 'input'.*\s+got: +int 1"),
        ({"messages": []}, r"field 'messages'.*\s+got: +list \[\]\s+expected: a non-empty list"),
        ({"messages": "[]"}, r"field 'messages'.*\s+got: +str"),
        ({"messages": ["q"]}, r"field 'messages\[0\]'.*\s+got: +str 'q'"),
        ({"messages": [{"from": "user", "value": "q"}]}, r"messages\[0\], field 'role'.*\s+got: +no such field"),
        ({"messages": [{"role": "tool", "content": "q"}]}, r"got: +str 'tool'\s+expected: one of system, user"),
        ({"messages": [QUESTION, {"role": "assistant", "content": None}]}, r"messages\[1\], field 'content'"),
        ({"messages": [QUESTION]}, r"messages\[0\], field 'role'.*\s.*'user'\s+expected: a conversation that ends"),
        ({"messages": [QUESTION, SYSTEM, ANSWER]}, r"messages\[1\], field 'role'.*\s.*\s.*only at the beginning"),
        ({"messages": [ANSWER]}, r"messages\[0\], field 'role'.*\s.*\s.*user turn before every assistant"),
        ({"messages": [SYSTEM, ANSWER]}, r"messages\[1\], field 'role'"),
        ({"messages": [QUESTION, ANSWER, ANSWER]}, r"messages\[2\], field 'role'"),
    ],
)
def test_a_bad_row_names_place_and_field(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=rf"file, line 1, {message}" if "field" in message[:7] else message):
        read(fields)


def test_skipped_rows_are_counted_and_the_first_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    bad_rows = BadRows("skip")
    unparsed = DataError("file, line 9: broken", got="", expected="", fix="")
    good = {"prompt": "q", "completion": "a"}
    given = [*rows(good, {"prompt": "q", "completion": ""}), unparsed]
    assert len(list(read_conversations("file", given, "auto", bad_rows))) == 1
    bad_rows.report("train")
    assert bad_rows.count == 2
    assert "train: skipped 2 bad rows: file, line 2, field 'completion'" in caplog.text


def test_a_row_that_cannot_be_parsed_stops_unless_skipped() -> None:
    unparsed = DataError("file, line 9: broken", got="", expected="", fix="")
    with pytest.raises(DataError, match="line 9: broken"):
        list(read_conversations("file", [unparsed], "alpaca", BadRows("error")))
    with pytest.raises(DataError, match="line 9: broken"):
        list(read_conversations("file", [unparsed], "auto", BadRows("skip")))


def test_a_format_is_one_entry(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def asked(row: Row, ignored: object) -> list[dict[str, Any]]:
        return [{**QUESTION, "content": row.fields["question"]}, {**ANSWER, "content": row.fields["reply"]}]

    monkeypatch.setitem(FORMATS, "asked", Format(("question", "reply"), asked, ("topic",), ("reply",)))
    row = {"question": "q", "reply": "a", "topic": "t"}
    with caplog.at_level(logging.INFO):
        assert read(row) == read(row, row_format="asked") == [[QUESTION, ANSWER]]
    assert "rows are read as asked" in caplog.text
    assert "no use" not in caplog.text
    with pytest.raises(DataError, match=r"question and reply \(asked\)"):
        read({"x": 1})


def test_every_format_can_be_chosen_and_is_described() -> None:
    assert {*FORMATS, "auto"} == set(get_args(RowFormat))
    for name in FORMATS:
        assert f"{name} (" in str(InstructionDataModule.__doc__)
