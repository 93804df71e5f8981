"""A wrong field is told before torch is imported, in the words of what reads the whole file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pera_lightning.cli.options.first_rows import check_first_rows
from pera_lightning.data.chat.conversations import BadRows, read_conversations
from pera_lightning.data.reading.row_files import read_rows
from pera_lightning.errors import ConfigError, DataError
from tests.support.light_starts import run_lightly

GOOD = {"prompt": "q", "completion": "a"}
BAD = {"promt": "q", "completion": "a"}
CHAT, LABELLED = "--data InstructionDataModule ", "--data ClassificationDataModule "


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, rows in (
        ("good.jsonl", [GOOD]),
        ("bad.jsonl", [BAD, BAD]),
        ("late.jsonl", [*[GOOD] * 3, BAD]),
        ("second.jsonl", [BAD, GOOD]),
        ("labelled.jsonl", [{"sentence": "a", "label": 1}]),
        ("unlabelled.jsonl", [{"sentence": "a"}]),
    ):
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "bad.csv").write_text("promt,completion\nq,a\n")
    (tmp_path / "bad.json").write_text(json.dumps([BAD]))
    (tmp_path / "broken.jsonl").write_text('{"prompt": ')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("row_format", ["auto", "prompt_completion"])
@pytest.mark.parametrize("name", ["bad.jsonl", "bad.json", "bad.csv", "broken.jsonl"])
def test_rows_of_chats(name: str, row_format: str) -> None:
    with pytest.raises(DataError) as later:
        list(read_conversations(name, read_rows(Path(name)), row_format, BadRows("error")))
    words = [*CHAT.split(), "--data.format", row_format, "--data.train_files"]
    if (name, row_format) != ("broken.jsonl", "prompt_completion"):
        for files in (name, f"[good.jsonl, {name}]"):
            with pytest.raises(DataError) as early:
                check_first_rows("fit", [*words, files])
            assert str(early.value) == str(later.value)
    check_first_rows("fit", [*words, name, "--data.on_bad_row", "skip"])
    check_first_rows("test", [*words, name])


@pytest.mark.parametrize(
    "name", ["good.jsonl", "late.jsonl", "second.jsonl", "missing.jsonl", ".", "s3://bucket/a.jsonl"]
)
def test_what_may_be_right_is_left_to_the_data(name: str) -> None:
    check_first_rows("fit", [*CHAT.split(), "--data.train_files", name])


def test_large_files_are_not_read_twice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pera_lightning.cli.options.first_rows._LARGEST", 10)
    check_first_rows("fit", [*CHAT.split(), "--data.train_files", "bad.json"])
    with pytest.raises(DataError):
        check_first_rows("fit", [*CHAT.split(), "--data.train_files", "bad.jsonl"])


def test_a_commonsense_file() -> None:
    with pytest.raises(DataError, match="field 'instruction'"):
        check_first_rows("fit", ["--data", "CommonsenseDataModule", "--data.train_file", "good.jsonl"])


def test_labelled_rows() -> None:
    check_first_rows("fit", [*LABELLED.split(), "--data.train_files", "labelled.jsonl"])
    check_first_rows("predict", [*LABELLED.split(), "--data.predict_files", "unlabelled.jsonl"])
    for words, message in (
        ("--data.train_files unlabelled.jsonl", "label_field"),
        ("--data.train_files good.jsonl", "text_field"),
        ("--data.train_files labelled.jsonl --data.text_field sentense", "did you mean sentence"),
        ("--data.train_files labelled.jsonl --data.label_field lable", "did you mean label"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_first_rows("fit", [*LABELLED.split(), *words.split()])


def test_nothing_heavy_is_imported() -> None:
    words = [*CHAT.split(), "--data.train_files", "bad.jsonl"]
    check = f"from pera_lightning.cli.options.first_rows import check_first_rows; check_first_rows('fit', {words!r})"
    assert "not recognised" in run_lightly(check)
