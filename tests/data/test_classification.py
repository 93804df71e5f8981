"""One's own texts with classes or scores, out of files and of the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pera_lightning import ClassificationDataModule
from pera_lightning.data.reading import split_sources
from pera_lightning.errors import ConfigError, DataError
from tests.support.pretrained import character_tokenizer

NAMED = "text,label\na,good\nbb,bad\nccc,good\n"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return character_tokenizer()


def write(folder: Path, content: str | list[dict[str, Any]], name: str | None = None) -> str:
    """Write rows of JSON lines, or the text of a file in CSV; returns the file."""
    csv = isinstance(content, str)
    path = folder / (name or ("rows.csv" if csv else "rows.jsonl"))
    path.write_text(content if csv else "".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return str(path)


def set_up(tokenizer: Any, stage: str = "fit", **options: Any) -> ClassificationDataModule:
    data = ClassificationDataModule(tokenizer=tokenizer, **options)
    data.setup(stage)
    return data


def targets(rows: Any) -> list[float]:
    return [row["labels"] for row in rows.dataset]


def rows_with(*labels: Any) -> list[dict[str, Any]]:
    return [{"text": "a", "label": label} for label in labels]


def test_classes_are_found_sorted(tmp_path: Path, tokenizer: Any) -> None:
    data = set_up(tokenizer, train_files=write(tmp_path, NAMED), batch_size=3)
    assert (data.labels, data.num_labels) == (("bad", "good"), 2)
    assert targets(data.train_dataloader()) == [1, 0, 1]
    batch = next(iter(data.train_dataloader()))
    assert batch["labels"].dtype == torch.int64
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (3, 3)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ((10, 9, 10), (9, 10)),
        (("10", "9", "10"), (9, 10)),
        (("01", "9", "9"), ("01", "9")),
        (("x", 1, "1"), ("1", "x")),
        ((True, False, True), ("false", "true")),
        ((" x ", "y", "x"), ("x", "y")),
    ],
)
def test_numbers_stay_numbers(
    tmp_path: Path, tokenizer: Any, labels: tuple[Any, ...], names: tuple[int | str, ...]
) -> None:
    assert set_up(tokenizer, train_files=write(tmp_path, rows_with(*labels))).labels == names


@pytest.mark.parametrize(
    ("labels", "options", "expected"),
    [
        ((0.5, 1, 3.0), {}, [0.5, 1.0, 3.0]),
        (("0.5", "-1", "2e-1"), {}, [0.5, -1.0, 0.2]),
        ((1, 2, 2), {"regression": True}, [1.0, 2.0, 2.0]),
    ],
)
def test_scores(
    tmp_path: Path, tokenizer: Any, labels: tuple[Any, ...], options: dict[str, Any], expected: list[float]
) -> None:
    data = set_up(tokenizer, train_files=write(tmp_path, rows_with(*labels)), **options)
    assert (data.labels, data.num_labels) == ((), 1)
    assert targets(data.train_dataloader()) == expected
    assert next(iter(data.train_dataloader()))["labels"].dtype == torch.float32


def test_numbers_with_decimals_can_be_classes(tmp_path: Path, tokenizer: Any) -> None:
    data = set_up(tokenizer, train_files=write(tmp_path, rows_with(1.0, 0.0, 1.0)), regression=False)
    assert data.labels == (0, 1)


def test_a_chosen_order_holds_for_every_split(tmp_path: Path, tokenizer: Any) -> None:
    train = write(tmp_path, rows_with("good", "bad"), "train.jsonl")
    test = write(tmp_path, NAMED, "test.csv")
    data = set_up(tokenizer, "test", train_files=train, test_files=test, labels=["good", "bad"])
    assert targets(data.test_dataloader()) == [0, 1, 0]
    # Without it the training rows tell.
    assert targets(set_up(tokenizer, "test", train_files=train, test_files=test).test_dataloader()) == [1, 0, 1]


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        (("text", "text_pair", "label"), {}),
        (("premise", "hypothesis", "class"), {}),
        (("left", "right", "kind"), {"text_field": "left", "text_pair_field": "right", "label_field": "kind"}),
    ],
)
def test_pairs(tmp_path: Path, tokenizer: Any, fields: tuple[str, ...], options: dict[str, str]) -> None:
    rows = [dict(zip(fields, values, strict=True)) for values in (("a", "bb", "x"), ("c", "d", "y"))]
    data = set_up(tokenizer, train_files=write(tmp_path, rows), **options)
    ids = [row["input_ids"] for row in data.train_dataloader().dataset]
    assert ids == [tokenizer("a", "bb")["input_ids"], tokenizer("c", "d")["input_ids"]]


def test_parquet(tmp_path: Path, tokenizer: Any) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"sentence": ["a", "b"], "label": ["y", "x"]}), tmp_path / "rows.parquet")
    data = set_up(tokenizer, train_files=str(tmp_path / "rows.parquet"))
    assert targets(data.train_dataloader()) == [1, 0]


def test_the_hub_names_its_classes(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["world", "sports"])})
    rows = Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, 1]}, features=features)
    monkeypatch.setattr(split_sources, "load_hub_dataset", lambda *_: {"train": rows, "test": rows})
    data = set_up(tokenizer, dataset="somebody/news", val_split=0.3)
    assert data.labels == ("sports", "world")
    assert len(data.train_dataloader().dataset) == 2
    assert len(data.val_dataloader().dataset) == 1  # type: ignore[union-attr]


def test_rows_are_held_out_and_drawn_at_random(tmp_path: Path, tokenizer: Any) -> None:
    file = write(
        tmp_path, [{"text": "ab"[number % 2] * (1 + number), "label": "ab"[number % 2]} for number in range(40)]
    )

    def lengths(**options: Any) -> tuple[list[int], list[int]]:
        data = set_up(tokenizer, train_files=file, val_split=0.25, max_length=60, **options)
        return data._splits["train"].lengths, data._splits["val"].lengths

    train, val = lengths()
    assert sorted(train + val) == list(range(1, 41))
    assert len(val) == 10
    assert val == sorted(val) != list(range(1, 11))
    assert lengths(seed=1) != (train, val)
    few = lengths(max_train_rows=5)[0]
    assert len(few) == 5
    assert few == sorted(few)
    assert set(few) < set(train)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, r"line 4, field 'label': the label cannot be used[\s\S]*no label"),
        ({"text": "a", "label": None}, r"line 4, field 'label'[\s\S]*no label"),
        ({"text": "a", "label": " "}, r"line 4, field 'label'[\s\S]*no label"),
        ({"text": "a", "label": ["x", "y"]}, r"line 4, field 'label'[\s\S]*one label: rows that have several"),
        ({"text": "a", "label": {"x": 1}}, r"line 4, field 'label'[\s\S]*dict"),
        ({"text": "  ", "label": "x"}, r"line 4, field 'text': the text cannot be used[\s\S]*str ' '"),
        ({"label": "x"}, r"line 4, field 'text'[\s\S]*no such field"),
        ({"text": 3, "label": "x"}, r"line 4, field 'text'[\s\S]*int 3"),
        ({"text": "\ud83d", "label": "x"}, r"line 4, field 'text': the text holds half of a character"),
    ],
)
def test_bad_rows_are_named_or_skipped(tmp_path: Path, tokenizer: Any, row: dict[str, Any], message: str) -> None:
    file = write(tmp_path, [*rows_with("x", "y", "x"), row, *rows_with("y")])
    with pytest.raises(DataError, match=message):
        set_up(tokenizer, train_files=file)
    data = set_up(tokenizer, train_files=file, on_bad_row="skip")
    assert [row.index for row in data._rows["train"]] == [0, 1, 2, 4]


def test_a_class_that_training_does_not_have(tmp_path: Path, tokenizer: Any) -> None:
    train, val = write(tmp_path, NAMED, "train.csv"), write(tmp_path, "text,label\na,good\nb,godo\n", "val.csv")
    with pytest.raises(
        DataError, match=r"val\.csv, line 3, field 'label'[\s\S]*'godo'[\s\S]*bad, good[\s\S]*mean good"
    ):
        set_up(tokenizer, train_files=train, val_files=val)


@pytest.mark.parametrize("score", ["nan", "inf", "x"])
def test_scores_are_finite_numbers(tmp_path: Path, tokenizer: Any, score: str) -> None:
    file = write(tmp_path, f"text,label\na,0.5\nb,{score}\n")
    with pytest.raises(DataError, match=r"line 3, field 'label'[\s\S]*finite number"):
        set_up(tokenizer, train_files=file, regression=True)
    if score == "x":
        with pytest.raises(DataError, match=r"line 3, field 'label': this label is no number"):
            set_up(tokenizer, train_files=file)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["x"] * 3, "too few classes[\\s\\S]*all labelled x"),
        (list(range(20)), "a label of its own[\\s\\S]*20 rows"),
    ],
)
def test_labels_that_are_no_classes(tmp_path: Path, tokenizer: Any, labels: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        set_up(tokenizer, train_files=write(tmp_path, rows_with(*labels)))


@pytest.mark.parametrize(
    ("header", "options", "message"),
    [
        ("review,label", {}, r"of text_field[\s\S]*line 2 has review, label[\s\S]*set text_field"),
        ("text,lable", {}, r"of label_field[\s\S]*perhaps lable"),
        ("review,label", {"text_field": "revew"}, r"text_field names a field[\s\S]*did you mean review"),
        ("text,star", {"label_field": "stars"}, r"label_field names a field[\s\S]*did you mean star"),
    ],
)
def test_fields_that_are_not_there(
    tmp_path: Path, tokenizer: Any, header: str, options: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        set_up(tokenizer, train_files=write(tmp_path, f"{header}\na,x\nb,y\n"), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ["x"]}, "labels"),
        ({"labels": ["x", "x"]}, "all different"),
        ({"labels": [1, "1"]}, "all different"),
        ({"labels": ["x", "y"], "regression": True}, "labels and regression"),
        ({"text_pair_field": "b"}, "text_pair_field 'b' without text_field"),
        ({"val_files": "a.csv", "val_split": 0.1}, "val_files and val_split"),
        ({"val_split": 1.0}, "val_split"),
        ({"max_test_rows": 0}, "max_test_rows"),
        ({"regression": "no"}, "regression"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ClassificationDataModule(**options)


def test_true_and_false_are_classes_too(tmp_path: Path, tokenizer: Any) -> None:
    file = write(tmp_path, rows_with(True, False))
    data = set_up(tokenizer, train_files=file, labels=[True, False])
    assert data.labels == ("true", "false")
    assert targets(data.train_dataloader()) == [0, 1]


def test_without_training_rows_classes_have_to_be_told(tmp_path: Path, tokenizer: Any) -> None:
    test = write(tmp_path, NAMED)
    with pytest.raises(ConfigError, match=r"which classes there are[\s\S]*set labels"):
        set_up(tokenizer, "test", test_files=test)
    assert set_up(tokenizer, "test", test_files=test, labels=["bad", "good"]).num_labels == 2
    with pytest.raises(ConfigError, match=r"no data for the test split"):
        set_up(tokenizer, "test", train_files=test)


def test_rows_to_predict_need_no_label(tmp_path: Path, tokenizer: Any) -> None:
    options = {"train_files": write(tmp_path, NAMED, "train.csv"), "test_files": write(tmp_path, NAMED, "test.csv")}
    file = write(tmp_path, [{"text": "abc"}, {"text": "d", "label": "unheard of"}])
    data = set_up(tokenizer, "predict", predict_files=file, **options)
    assert len(data.predict_dataloader().dataset) == 2
    assert [row.label for row in data._rows["predict"]] == [None, None]
    assert len(set_up(tokenizer, "predict", **options).predict_dataloader().dataset) == 3
