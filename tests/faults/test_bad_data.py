"""Bad files that ended in bare errors: halves of characters, nesting without end, huge numbers, long fields."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from pera_lightning.data.instruction import InstructionDataModule
from pera_lightning.data.text import TextDataModule
from pera_lightning.errors import DataError
from tests.data.conftest import SMOLLM2_TEMPLATE, build_tokenizer
from tests.support.pretrained import character_tokenizer

GOOD = '{"prompt": "q", "completion": "a"}'
HALF = '{"prompt": "q\\ud83d", "completion": "a"}'
DEEP = '{"prompt": "q", "completion": "a", "x": ' + "[" * 100_000 + "]" * 100_000 + "}"
FAIRLY_DEEP = '{"prompt": "q", "completion": "a", "x": ' + "[" * 300 + "]" * 300 + "}"
BIG = "7" * 5000
BAD_LINES: dict[str, tuple[str | bytes, str]] = {
    "half a character": (HALF, "field 'prompt': the text holds half of a character"),
    "half in the answer": ('{"prompt": "q", "completion": "\\udc00"}', "field 'completion': the text holds half"),
    "deep": (DEEP, "nested too deeply"),
    "fairly deep": (FAIRLY_DEEP, "nested too deeply"),
    "big number": ('{"prompt": ' + BIG + ', "completion": "a"}', "field 'prompt': cannot be used"),
    "not a number": ('{"prompt": NaN, "completion": "a"}', "field 'prompt': cannot be used"),
    "infinity": ('{"prompt": "q", "completion": -Infinity}', "field 'completion': cannot be used"),
    "a key twice": ('{"prompt": "q", "prompt": "p", "completion": "a"}', "the key 'prompt' twice"),
    "a key twice inside": ('{"prompt": "q", "completion": "a", "x": [{"y": 1, "y": 2}]}', "the key 'y' twice"),
    "zero bytes": (b'{"prompt": "q\0", "completion": "a"}', "this is no text"),
    "another encoding": (b'{"prompt": "\xe9", "completion": "a"}', "this is not UTF-8"),
    "UTF-16": (GOOD.encode("utf-16-le"), "this is no text"),
    "control characters": (b'{"prompt": "q\x01", "completion": "a"}', "this is not JSON"),
}
GOOD_LINES: dict[str, str | bytes] = {
    "big number in another column": '{"prompt": "q", "completion": "a", "id": ' + BIG + "}",
    "NaN in another column": '{"prompt": "q", "completion": "a", "score": NaN}',
    "both halves": '{"prompt": "q\\ud83d\\ude00", "completion": "a"}',
    "windows": GOOD.encode() + b"\r",
    "a million characters": json.dumps({"prompt": "q" * 1_000_000, "completion": "a"}),
    "escaped zero": '{"prompt": "q\\u0000", "completion": "a"}',
}


def write(path: Path, *lines: str | bytes) -> str:
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
    return str(path)


def instructions(path: str, **options: Any) -> InstructionDataModule:
    return InstructionDataModule(path, tokenizer=build_tokenizer(SMOLLM2_TEMPLATE, eos_token="<|im_end|>"), **options)


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_named_or_left_out(name: str, tmp_path: Path) -> None:
    line, words = BAD_LINES[name]
    for ending in (".jsonl", ".json"):
        path = write(tmp_path / f"rows{ending}", GOOD, line, GOOD)
        with pytest.raises(DataError, match=rf"(?s)rows\{ending}, line 2.*{words}"):
            instructions(path).setup("fit")
        data = instructions(path, on_bad_row="skip")
        data.setup("fit")
        summary = data._splits["train"].summary
        assert (summary.rows, summary.rows_skipped) == (2, 1)


@pytest.mark.parametrize("name", GOOD_LINES)
def test_an_odd_line_that_can_be_used(name: str, tmp_path: Path) -> None:
    data = instructions(write(tmp_path / "rows.jsonl", GOOD, GOOD_LINES[name], GOOD), max_length=64)
    data.setup("fit")
    assert data._splits["train"].summary.rows == 3


@pytest.mark.parametrize(
    "name", ["half a character", "deep", "fairly deep", "big number", "not a number", "a key twice"]
)
def test_the_same_in_an_array(name: str, tmp_path: Path) -> None:
    line, words = BAD_LINES[name]
    assert isinstance(line, str)
    path = write(tmp_path / "rows.json", "[", GOOD + ",", line, "]")
    with pytest.raises(DataError, match=rf"(?s)rows\.json, line 3.*{words}"):
        instructions(path).setup("fit")
    if name != "deep":
        data = instructions(path, on_bad_row="skip")
        data.setup("fit")
        assert data._splits["train"].summary.rows_skipped == 1


def test_a_broken_text_in_a_chat_and_in_a_plain_text(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "\ud800"}]
    with pytest.raises(DataError, match=r"line 1, messages\[1\], field 'content': the text holds half of a character"):
        instructions(write(tmp_path / "chat.jsonl", json.dumps({"messages": turns}))).setup("fit")
    rows = {"prompt": "q", "completion": "a", "tools": [{"name": "\ud800"}]}
    with pytest.raises(DataError, match="field 'tools': the text holds half of a character"):
        instructions(write(tmp_path / "tools.jsonl", json.dumps(rows))).setup("fit")
    path = write(tmp_path / "text.jsonl", '{"text": "ab\\udfff"}', json.dumps({"text": "ab" * 20}))
    tokenizer = character_tokenizer()
    with pytest.raises(DataError, match="line 1, field 'text': the text holds half of a character"):
        TextDataModule(path, tokenizer=tokenizer, block_length=4).setup("fit")
    data = TextDataModule(path, tokenizer=tokenizer, block_length=4, on_bad_row="skip")
    data.setup("fit")
    assert len(data.train_dataloader().dataset) == 10


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.txt"])
@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"\n\n", b"\0\0\0\0"])
def test_files_without_a_row(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    path = str(tmp_path / name)
    texts = TextDataModule(path, tokenizer=character_tokenizer(), block_length=4)
    data = texts if name.endswith("txt") else instructions(path)
    with pytest.raises(DataError, match=r"rows\.\w+"):
        data.setup("fit")


def test_a_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    for name, text in (("rows.jsonl", GOOD), ("rows.csv", "prompt,completion\r\nq,a")):
        data = instructions(write(tmp_path / name, b"\xef\xbb\xbf" + text.encode() + b"\r"))
        data.setup("fit")
        assert data._splits["train"].summary.rows == 1


def test_a_long_field_of_a_csv_file(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    path = write(tmp_path / "rows.csv", "prompt,completion", f"{'q' * 300_000},a", '"' + "a\n" * 100_000 + '",b')
    data = instructions(path, max_length=64)
    data.setup("fit")
    assert data._splits["train"].summary.rows == 2
    # The limit is one for the whole process.
    assert csv.field_size_limit() == limit
    with pytest.raises(DataError, match="line 2: this is not CSV"):
        instructions(write(tmp_path / "open.csv", "prompt,completion", '"q,a')).setup("fit")
