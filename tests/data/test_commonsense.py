"""`CommonsenseDataModule`: rows, prompts, the share trained on and the rows held out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pera_lightning import CommonsenseDataModule
from pera_lightning.errors import ConfigError, DataError
from tests.data.conftest import SMOLLM2_TEMPLATE, build_tokenizer
from tests.support.commonsense import write_commonsense

TOKENIZER = build_tokenizer(SMOLLM2_TEMPLATE, bos_token="<|im_start|>", eos_token="<|im_end|>")
# LLM-Adapters' prompt, with the answer and eos.
EXPECTED = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n{output}<|im_end|>"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_commonsense(tmp_path_factory.mktemp("data") / "commonsense")


def module(folder: Path, **options: Any) -> CommonsenseDataModule:
    options = {"val_rows": 8, "max_length": 1024, "tokenizer": TOKENIZER, "seed": 1, **options}
    data = CommonsenseDataModule(str(folder / "train.json"), str(folder), **options)
    data.setup("fit")
    return data


def texts(data: CommonsenseDataModule, split: str) -> list[str]:
    return [TOKENIZER.decode(example["input_ids"]) for example in data._splits[split]]


def test_prompts_are_llm_adapters(folder: Path) -> None:
    data = module(folder, val_rows=0)
    rows = json.loads((folder / "train.json").read_text())
    assert texts(data, "train") == [EXPECTED.format(**row) for row in rows]
    example = data._splits["train"][3]
    learnt = TOKENIZER.decode(example["input_ids"][example["labels"] != -100])
    assert learnt == rows[3]["output"] + "<|im_end|>"
    assert data.val_dataloader() == []


def test_the_chat_template_is_an_option(folder: Path) -> None:
    text = texts(module(folder, template="chat"), "train")[0]
    assert "Below is" not in text
    assert text.count("<|im_start|>") == 3


def test_a_smaller_share_is_part_of_a_larger_one(folder: Path) -> None:
    shares = {share: module(folder, fraction=share) for share in (0.1, 0.5, 1.0)}
    train = {share: set(texts(data, "train")) for share, data in shares.items()}
    assert [len(rows) for rows in train.values()] == [3, 16, 32]
    assert train[0.1] < train[0.5] < train[1.0]
    [val] = {tuple(texts(data, "val")) for data in shares.values()}
    assert len(val) == 8
    assert not train[1.0] & set(val)


def test_the_seed_decides(folder: Path) -> None:
    first, same, other = (module(folder, fraction=0.5, seed=seed) for seed in (1, 1, 2))
    assert texts(first, "train") == texts(same, "train") != texts(other, "train")
    assert texts(first, "val") == texts(same, "val") != texts(other, "val")


def test_a_share_without_validation(folder: Path) -> None:
    assert len(texts(module(folder, fraction=0.25, val_rows=0), "train")) == 10


def test_tests_on_all_eight_sets(folder: Path) -> None:
    data = module(folder)
    data.setup("test")
    rows = [json.loads(path.read_text()) for path in data.sources.files["test"]]
    assert texts(data, "test") == [EXPECTED.format(**row) for rows_of_task in rows for row in rows_of_task]
    assert len(rows) == 8
    data = module(folder, max_test_rows=2)
    data.setup("test")
    assert texts(data, "test") == [EXPECTED.format(**row) for rows_of_task in rows for row in rows_of_task[:2]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 0.0}, "fraction must be a share"),
        ({"fraction": 1.5}, "fraction must be a share"),
        ({"val_rows": -1}, "val_rows is too small"),
        ({"template": "llama"}, "template has an unknown value"),
    ],
)
def test_impossible_options(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        module(folder, **options)


def test_too_few_rows_to_hold_out(folder: Path) -> None:
    with pytest.raises(DataError, match="too few train rows"):
        module(folder, val_rows=40)
