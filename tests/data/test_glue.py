"""The data module of GLUE's tasks."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from pera_lightning.data.glue import GlueDataModule
from pera_lightning.data.reading import glue_sources
from pera_lightning.data.reading.glue_files import GLUE_TASKS, cut_in_two, read_glue_file
from pera_lightning.errors import ConfigError, DataError
from tests.support.classifiers import write_task
from tests.support.pretrained import character_tokenizer

MNLI = "sentence1\tsentence2\tgold_label\naa\tb\tneutral\na\tbb\tcontradiction\na\tb\tentailment\n"


@pytest.fixture
def tokenizer() -> Any:
    return character_tokenizer()


def texts(data: GlueDataModule, batch: dict[str, torch.Tensor]) -> list[str]:
    ids = [row[mask.bool()] for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    return [data._tokenizer.decode(row).replace(" ", "") for row in ids]


def test_batches_of_classes(tmp_path: Path, tokenizer: Any) -> None:
    data = GlueDataModule(
        "cola", write_task(tmp_path / "t", "cola", 9), tokenizer=tokenizer, batch_size=4, max_length=5
    )
    data.setup("fit")
    assert data.num_labels == 2
    assert len(data.train_dataloader()) == 3
    batch = next(iter(data.train_dataloader()))
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert batch["labels"].dtype == torch.int64
    for text, label in zip(texts(data, batch), batch["labels"].tolist(), strict=True):
        assert set(text) == {"ab"[label]}
    assert max(len(row["input_ids"]) for row in data.train_dataloader().dataset) == 5


def test_batches_of_scores_of_pairs(tmp_path: Path, tokenizer: Any) -> None:
    data = GlueDataModule("stsb", write_task(tmp_path / "t", "stsb", 6), tokenizer=tokenizer, eval_batch_size=2)
    data.setup("test")
    assert data.num_labels == 1
    batches = list(data.test_dataloader())
    rows = read_glue_file(tmp_path / "t" / "dev.tsv", "stsb")
    expected = [rows[index] for index in cut_in_two(6, seed=0)[1]]
    assert [len(batch["labels"]) for batch in batches] == [2, 1]
    assert torch.cat([batch["labels"] for batch in batches]).tolist() == [row.label for row in expected]
    assert batches[0]["labels"].dtype == torch.float32
    assert [text for batch in batches for text in texts(data, batch)] == ["".join(row.texts) for row in expected]


def test_val_and_test_are_the_halves_of_the_validation_set(tmp_path: Path, tokenizer: Any) -> None:
    folder = write_task(tmp_path / "t", "cola", 20)

    def halves(stage: str, **options: int) -> list[list[dict[str, Any]]]:
        data = GlueDataModule("cola", folder, tokenizer=tokenizer, **options)
        data.setup(stage)
        return [list(loader.dataset) for loader in (data.val_dataloader(), data.test_dataloader())]

    val, test = halves("fit", split_seed=3)
    assert len(val) == len(test) == 10
    rows = read_glue_file(tmp_path / "t" / "dev.tsv", "cola")
    chosen = [tokenizer.decode(row["input_ids"]) for row in val]
    assert chosen == [tokenizer.decode(tokenizer(rows[i].texts[0])["input_ids"]) for i in cut_in_two(20, 3)[0]]
    # The stage and the seed of the training rows have no say.
    assert halves("test", split_seed=3, seed=5) == [val, test]
    assert halves("test", split_seed=4) != [val, test]


def test_the_order_depends_on_seed_and_epoch_alone(tmp_path: Path, tokenizer: Any) -> None:
    folder = write_task(tmp_path / "t", "cola", 40)

    def order(epoch: int, seed: int = 0) -> list[int]:
        data = GlueDataModule("cola", folder, tokenizer=tokenizer, seed=seed)
        data.setup("fit")
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        return list(loader.sampler)

    assert sorted(order(0)) == list(range(40))
    assert order(1) == order(1) != order(0)
    assert order(1, seed=1) != order(1)


def test_grouped_batches_hold_similar_lengths(tmp_path: Path, tokenizer: Any) -> None:
    folder = write_task(tmp_path / "t", "cola", 42)

    def lengths(grouped: bool) -> list[set[int]]:
        data = GlueDataModule("cola", folder, tokenizer=tokenizer, batch_size=6, group_by_length=grouped)
        data.setup("fit")
        return [set(batch["attention_mask"].sum(dim=1).tolist()) for batch in data.train_dataloader()]

    # Six rows of each of seven lengths.
    assert all(len(found) == 1 for found in lengths(True))
    assert len(lengths(True)) == len(lengths(False)) == 7
    assert any(len(found) > 1 for found in lengths(False))


def test_fewer_training_rows_are_drawn_from_the_whole_file(tmp_path: Path, tokenizer: Any) -> None:
    folder = write_task(tmp_path / "t", "cola", 40)

    def rows(**options: int) -> list[Any]:
        data = GlueDataModule("cola", folder, tokenizer=tokenizer, **options)
        data.setup("fit")
        return [row["input_ids"] for row in data.train_dataloader().dataset]

    everything = rows()
    assert len(rows(max_train_rows=10)) == 10
    assert rows(max_train_rows=10) != everything[:10]
    assert rows(max_train_rows=10) != rows(max_train_rows=10, seed=1)
    assert rows(max_train_rows=50) == everything


def test_mnli_is_evaluated_on_the_matched_genres(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "dev_matched.tsv").write_text(MNLI)
    data = GlueDataModule("mnli", str(tmp_path), tokenizer=tokenizer)
    data.setup("validate")
    assert data.num_labels == 3
    assert len(data.val_dataloader().dataset) + len(data.test_dataloader().dataset) == 3


@pytest.mark.parametrize("task", sorted(GLUE_TASKS))
def test_the_hub_gives_the_same_rows(task: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = len(GLUE_TASKS[task].texts) == 2
    names = glue_sources._HUB_TEXTS[task]
    rows = [{**dict(zip(names, ("aa", "b"), strict=False)), "label": 1.0 if task == "stsb" else 1, "idx": 0}] * 4
    asked = []

    def load(name: str, config: str) -> dict[str, list[dict[str, Any]]]:
        asked.append((name, config))
        return {"train": rows, "validation_matched" if task == "mnli" else "validation": rows}

    monkeypatch.setattr(glue_sources, "load_hub_dataset", load)
    data = GlueDataModule(task, tokenizer=tokenizer)  # type: ignore[arg-type]
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    assert texts(data, batch) == ["aab" if pair else "aa"] * 2
    assert batch["labels"].tolist() == [1, 1]
    assert len(data.train_dataloader().dataset) == 4
    assert set(asked) == {("nyu-mll/glue", task)}


def test_unlabelled_rows_of_the_hub_are_refused(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"sentence": "a", "label": -1}]
    monkeypatch.setattr(glue_sources, "load_hub_dataset", lambda name, config: {"train": rows, "validation": rows})
    with pytest.raises(DataError, match="1 of 1 rows of cola"):
        GlueDataModule("cola", tokenizer=tokenizer).setup("fit")


def test_impossible_options_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match="not known"):
        GlueDataModule("wnli")  # type: ignore[arg-type]
    for name in ("max_length", "batch_size", "eval_batch_size", "max_train_rows"):
        with pytest.raises(ConfigError, match=name):
            GlueDataModule("cola", **{name: 0})
    with pytest.raises(ConfigError, match="GlueDataModule has no tokenizer"):
        GlueDataModule("cola", str(tmp_path)).setup("fit")
    with pytest.raises(DataError, match=r"train\.tsv"):
        GlueDataModule("cola", str(tmp_path), tokenizer=tokenizer).setup("fit")


@pytest.mark.parametrize("task", ["cola", "rte"])
def test_a_length_that_leaves_nothing_is_refused(tmp_path: Path, tokenizer: Any, task: str) -> None:
    end = ("<eos>", tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <eos>", pair="$A <eos> $B:1 <eos>:1", special_tokens=[end]
    )
    needed = 2 if task == "cola" else 4
    folder = write_task(tmp_path / "t", task, 9)
    data = GlueDataModule(task, folder, tokenizer=tokenizer, max_length=needed)
    data.setup("fit")
    assert max(batch["input_ids"].shape[1] for batch in data.train_dataloader()) == needed
    with pytest.raises(ConfigError, match=f"(?s)leaves nothing.*expected: {needed} or more"):
        GlueDataModule(task, folder, tokenizer=tokenizer, max_length=needed - 1).setup("fit")


def test_rows_are_no_longer_than_the_model_takes(tmp_path: Path, tokenizer: Any) -> None:
    short = copy.deepcopy(tokenizer)
    short.model_max_length = 4
    data = GlueDataModule("cola", write_task(tmp_path / "t", "cola", 9), tokenizer=short)
    data.setup("fit")
    assert {batch["input_ids"].shape[1] for batch in data.train_dataloader()} == {4}


def test_says_what_it_trains_on_without_this_machines_folders() -> None:
    assert GlueDataModule("cola", "/home/me/CoLA").train_source == "GLUE cola (train.tsv)"
    assert GlueDataModule("cola").train_source == "GLUE cola (nyu-mll/glue)"
