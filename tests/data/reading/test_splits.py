from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pera_lightning.data.reading.splits import SplitSources
from pera_lightning.errors import ConfigError, DataError


def write_rows(path: Path, count: int, first: int = 0, bad: tuple[int, ...] = ()) -> Path:
    rows = [
        {"prompt": "" if number in bad else f"q{number}", "completion": "a"} for number in range(first, first + count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sources(train: list[Path] = (), val: list[Path] = (), test: list[Path] = (), **options: Any) -> SplitSources:
    defaults: dict[str, Any] = {
        "dataset": None,
        "dataset_config": None,
        "val_split": 0.0,
        "row_format": "auto",
        "on_bad_row": "error",
        "limits": {"train": None, "val": None, "test": None},
        "seed": 0,
    }
    files = {"train": list(train), "val": list(val), "test": list(test)}
    return SplitSources(files=files, **{**defaults, **options})


def prompts(source: SplitSources, split: str, *others: str) -> list[str]:
    rows = source.read([split, *others])[split]
    return [conversation.messages[0]["content"] for conversation in rows.conversations]


def test_files_of_a_split_are_read_one_after_the_other(tmp_path: Path) -> None:
    files = [write_rows(tmp_path / "b.jsonl", 2), write_rows(tmp_path / "a.jsonl", 2, first=5)]
    assert prompts(sources(train=files), "train") == ["q0", "q1", "q5", "q6"]


def test_files_of_other_splits_need_not_exist(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", 1)
    source = sources(train=[tmp_path / "missing.jsonl"], test=[file])
    assert prompts(source, "test") == ["q0"]
    with pytest.raises(DataError, match="does not exist"):
        source.read(["test", "train"])


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_a_limit_takes_the_first_good_rows_and_reads_no_further(tmp_path: Path, limit: int) -> None:
    file = write_rows(tmp_path / "a.jsonl", 6, bad=(0, 5))
    limits = {"train": limit, "val": None, "test": None}
    rows = sources(train=[file], limits=limits, on_bad_row="skip").read(["train"])["train"]
    assert len(rows.conversations) == min(limit, 4)
    assert rows.bad_rows.count == (2 if limit == 100 else 1)


def test_val_rows_are_held_out_of_the_train_rows(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", 20)
    source = sources(train=[file], val_split=0.25)
    train, val = prompts(source, "train", "val"), prompts(source, "val")
    assert (len(train), len(val)) == (15, 5)
    assert sorted(train + val) == sorted(f"q{number}" for number in range(20))
    assert val == sorted(val, key=lambda prompt: int(prompt[1:]))
    assert prompts(source, "train") == train
    assert prompts(sources(train=[file], val_split=0.25, seed=1), "val") != val


def test_limits_apply_after_the_rows_are_parted(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", 20)
    all_val = prompts(sources(train=[file], val_split=0.25), "val")
    limits = {"train": 4, "val": 2, "test": None}
    source = sources(train=[file], val_split=0.25, limits=limits)
    assert prompts(source, "val") == all_val[:2]
    assert len(prompts(source, "train")) == 4
    assert not set(prompts(source, "train")) & set(all_val)


def test_one_row_cannot_be_parted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="too few train rows"):
        sources(train=[write_rows(tmp_path / "a.jsonl", 1)], val_split=0.5).read(["train"])


def test_a_data_set_gives_its_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "data"
    folder.mkdir()
    write_rows(folder / "train.jsonl", 3)
    write_rows(folder / "validation.jsonl", 2, first=5)
    source = sources(dataset=str(folder))
    source.download()
    assert [split for split in ("train", "val", "test") if source.has(split)] == ["train", "val"]
    assert prompts(source, "train") == ["q0", "q1", "q2"]
    assert prompts(source, "val") == ["q5", "q6"]
    with pytest.raises(ConfigError, match=r"no data for the test split[\s\S]*the splits train, validation"):
        source.read(["test"])


def test_a_bad_row_of_a_data_set_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "data"
    folder.mkdir()
    write_rows(folder / "train.jsonl", 3, bad=(1,))
    with pytest.raises(DataError, match=r"data \(train\), row 2, field 'prompt'"):
        sources(dataset=str(folder)).read(["train"])


def test_a_split_without_a_source_is_refused(tmp_path: Path) -> None:
    source = sources(train=[write_rows(tmp_path / "a.jsonl", 1)])
    with pytest.raises(ConfigError, match=r"no data for the val split[\s\S]*set val_files, or val_split"):
        source.read(["val"])
    with pytest.raises(ConfigError, match=r"no data for the test split[\s\S]*set test_files"):
        source.read(["test"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"row_format": "chat"}, "format has an unknown value"),
        ({"on_bad_row": "ignore"}, "on_bad_row has an unknown value"),
        ({"limits": {"train": 0, "val": None, "test": None}}, "max_train_rows is too small"),
        ({"val_split": 1.0}, "val_split must be a share"),
        ({"val_split": -0.1}, "val_split must be a share"),
        ({"val_split": 0.1, "val": [Path("v.jsonl")]}, "val_files and val_split"),
        ({"dataset": "d", "train": [Path("t.jsonl")]}, "dataset and files"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sources(**options)
