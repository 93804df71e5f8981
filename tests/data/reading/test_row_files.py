from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pera_lightning.data.instruction import InstructionDataModule
from pera_lightning.data.reading import row_files
from pera_lightning.data.reading.parsed_row import Row
from pera_lightning.data.reading.row_files import (
    ROW_ENDINGS,
    TEXT_ENDINGS,
    dataset_rows,
    load_hub_dataset,
    read_rows,
)
from pera_lightning.data.text import TextDataModule
from pera_lightning.errors import DataError


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def places(path: Path) -> list[str]:
    """Line of every row, with the error's first words for rows that cannot be parsed."""
    found = []
    for row in read_rows(path):
        text = row.where if isinstance(row, Row) else str(row).splitlines()[0]
        found.append(text.removeprefix(f"{path}, "))
    return found


def test_jsonl_rows_carry_their_lines_and_blank_lines_count(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"x": 1}\n\n{"x": 2}\r\n')
    rows = list(read_rows(path))
    assert rows == [Row(f"{path}, line 1", {"x": 1}), Row(f"{path}, line 3", {"x": 2})]


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"x": "\xc3\xa9"}\n')
    assert [row.fields for row in read_rows(path)] == [{"x": "é"}]


def test_a_broken_json_line_is_an_error_among_good_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"x": 1}\n{"x": 2\n[3]\n{"x": 4}\n')
    first, broken, no_object, last = places(path)
    assert (first, last) == ("line 1", "line 4")
    assert broken.startswith("line 2, column 8: this is not JSON")
    assert no_object == "line 3: this is not a row."


@pytest.mark.parametrize("layout", ["pretty", "one line each", "compact", "lines"])
def test_json_rows_carry_the_lines_they_start_on(tmp_path: Path, layout: str) -> None:
    rows = [{"x": "[1,\\n"}, {"x": {"y": [1, 2]}}, {"x": "]"}]
    text, lines = {
        "pretty": (json.dumps(rows, indent=1), [2, 5, 13]),
        "one line each": ("[\n\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n", [3, 4, 5]),
        "compact": (json.dumps(rows), [1, 1, 1]),
        "lines": ("\n".join(map(json.dumps, rows)), [1, 2, 3]),
    }[layout]
    path = write(tmp_path / "a.json", text)
    read = list(read_rows(path))
    assert [row.fields for row in read] == rows
    assert [row.where for row in read] == [f"{path}, line {line}" for line in lines]


def test_a_json_array_that_is_cut_off_names_the_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", '[\n{"x": 1},\n{"x": 2}\n{"x": 3}]')
    with pytest.raises(DataError, match=r"line 4, column 1: this is not JSON"):
        list(read_rows(path))


def test_items_of_a_json_array_that_are_no_objects_are_errors(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", '[{"x": 1},\n "text",\n {"x": 2}]')
    assert places(path) == ["line 1", "line 2: this is not a row.", "line 3"]


def test_csv_rows_carry_the_line_they_start_on(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'x,y\n1,"two\nlines"\n\n3,"a ""b"", c"\r\n')
    assert [(row.where, row.fields) for row in read_rows(path)] == [
        (f"{path}, line 2", {"x": "1", "y": "two\nlines"}),
        (f"{path}, line 5", {"x": "3", "y": 'a "b", c'}),
    ]


def test_csv_rows_of_the_wrong_width_are_errors(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "x,y\n1,2\n3\n4,5,6\n7,8\n")
    assert places(path) == [
        "line 2",
        "line 3: this row does not fit the header.",
        "line 4: this row does not fit the header.",
        "line 5",
    ]


def test_csv_with_an_unclosed_quote_names_the_line_it_starts_on(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'x,y\n1,2\n3,"4\n5,6\n')
    with pytest.raises(DataError, match=r"line 3: this is not CSV"):
        list(read_rows(path))


def test_csv_with_a_column_named_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="names a field twice"):
        list(read_rows(write(tmp_path / "a.csv", "x,x\n1,2\n")))


def test_another_encoding_names_line_and_byte(tmp_path: Path) -> None:
    lines = b'{"x": "a"}\n{"x": "\xe9"}\n{"x": "b"}\n'
    with pytest.raises(DataError, match=r"line 2: this is not UTF-8[\s\S]*0xe9 at position 8"):
        list(read_rows(write(tmp_path / "a.csv", lines)))
    for name in ("a.jsonl", "a.json"):
        # Of lines that stand by themselves one can be left out.
        assert places(write(tmp_path / name, lines)) == ["line 1", "line 2: this is not UTF-8.", "line 3"]


def test_parquet_rows_are_numbered(tmp_path: Path) -> None:
    import datasets

    path = tmp_path / "a.parquet"
    messages = [{"role": "user", "content": "hi"}]
    datasets.Dataset.from_list([{"messages": messages}, {"messages": []}]).to_parquet(path)
    assert list(read_rows(path)) == [
        Row(f"{path}, row 1", {"messages": messages}),
        Row(f"{path}, row 2", {"messages": []}),
    ]


def test_a_damaged_parquet_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read as parquet"):
        list(read_rows(write(tmp_path / "a.parquet", b"PAR1 and then nothing")))


def test_a_missing_file_lists_near_names(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", "{}")
    write(tmp_path / "notes.txt", "")
    with pytest.raises(DataError, match=r"trian.jsonl does not exist[\s\S]*did you mean train.jsonl in"):
        read_rows(tmp_path / "trian.jsonl")
    with pytest.raises(DataError, match="does not exist either"):
        read_rows(tmp_path / "nowhere" / "train.jsonl")
    with pytest.raises(DataError, match=r"(?s)cannot be read.*a folder, not a file"):
        read_rows(tmp_path)


def test_a_pipe_is_called_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match=r"(?s)rows.jsonl cannot be read.*a named pipe, not a file"):
        read_rows(tmp_path / "rows.jsonl")


def test_a_file_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the ending '.txt'[\s\S]*\.jsonl, \.json, \.csv, \.parquet"):
        read_rows(write(tmp_path / "a.txt", "hello"))


def test_a_folder_loads_as_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "train.jsonl", '{"x": 1}\n{"x": 2}\n')
    loaded = load_hub_dataset(str(folder), None)
    assert list(dataset_rows("data (train)", loaded["train"])) == [
        Row("data (train), row 1", {"x": 1}),
        Row("data (train), row 2", {"x": 2}),
    ]


def test_a_data_set_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be loaded"):
        load_hub_dataset(str(tmp_path / "nothing"), None)


def test_a_format_of_files_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_tsv(path: Path) -> Iterator[Row]:
        header, *lines = path.read_text().splitlines()
        for number, line in enumerate(lines, start=2):
            yield Row(f"{path}, line {number}", dict(zip(header.split("\t"), line.split("\t"), strict=True)))

    monkeypatch.setitem(row_files._READERS, ".tsv", read_tsv)
    path = write(tmp_path / "a.TSV", "x\ty\n1\t2\n")
    assert list(read_rows(path, (*ROW_ENDINGS, ".tsv"))) == [Row(f"{path}, line 2", {"x": "1", "y": "2"})]


def test_every_ending_is_read_and_described() -> None:
    assert {*ROW_ENDINGS, ".txt"} == set(TEXT_ENDINGS) == set(row_files._READERS)
    for module, endings in ((InstructionDataModule, ROW_ENDINGS), (TextDataModule, TEXT_ENDINGS)):
        named = str(module.__doc__).lower().replace("json lines", "jsonl")
        assert [ending for ending in endings if ending.removeprefix(".") not in named] == []
