"""`TextDataModule`: texts as blocks, and the perplexity that comes out of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from pera_lightning import PeraCallback, PeraCausalLM, TextDataModule
from pera_lightning.data.reading import split_sources
from pera_lightning.errors import ConfigError, DataError
from tests.support.models import tiny_llama
from tests.support.pretrained import character_tokenizer, save_pretrained
from tests.support.trainers import SAFE_LOADING, cpu_trainer

TOKENIZER = character_tokenizer()
EOS = TOKENIZER.eos_token_id
# 61 characters, each a token.
TEXT = "the quick brown fox jumps over the lazy dog. it sleeps, then."


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    names = {}
    for split, text in (("train", TEXT), ("val", TEXT[::-1]), ("test", TEXT.replace("o", "a"))):
        path = tmp_path / f"{split}.txt"
        path.write_text(text)
        names[f"{split}_files"] = str(path)
    return names


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(1)
    return save_pretrained(tmp_path_factory.mktemp("pretrained"))


def module(stage: str = "fit", **options: Any) -> TextDataModule:
    data = TextDataModule(**{"tokenizer": TOKENIZER, "block_length": 8, **options})
    data.setup(stage)
    return data


def ids(text: str) -> list[int]:
    return TOKENIZER(text)["input_ids"]


def stream(data: TextDataModule, split: str = "train") -> list[int]:
    """The tokens of all blocks in the order of the text."""
    return torch.cat([block["input_ids"] for block in data._splits[split]]).tolist()


def write_rows(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def trainer(folder: Path, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    return cpu_trainer(folder, *callbacks, enable_checkpointing=False, log_every_n_steps=1, **options)


def test_training_has_whole_blocks_and_validation_the_rest_too(files: dict[str, str]) -> None:
    data = module(**files, batch_size=3, eval_batch_size=5)
    assert stream(data) == ids(TEXT)[:56]
    assert stream(data, "val") == ids(TEXT[::-1])
    batches = list(data.train_dataloader())
    assert [batch["input_ids"].shape for batch in batches] == [(3, 8), (3, 8), (1, 8)]
    for batch in batches:
        assert set(batch) == {"input_ids", "labels"}
        assert all(values.dtype == torch.int64 for values in batch.values())
        assert batch["labels"][:, 0].eq(-100).all()
        assert torch.equal(batch["labels"][:, 1:], batch["input_ids"][:, 1:])
    first, last = data.val_dataloader()
    assert first["input_ids"].shape == (5, 8)
    assert first["attention_mask"].all()
    assert last["attention_mask"].sum(dim=1).tolist() == [8, 8, 5]
    assert last["input_ids"][2].tolist() == [*ids(TEXT[4::-1]), *[TOKENIZER.pad_token_id] * 3]
    assert last["labels"][2].tolist() == [-100, *ids(TEXT[3::-1]), -100, -100, -100]


@pytest.mark.parametrize(("length", "blocks"), [(60, [60]), (59, [59, 2]), (61, [61]), (62, [61])])
def test_a_rest_of_one_token_predicts_nothing(files: dict[str, str], length: int, blocks: list[int]) -> None:
    assert module("validate", **files, block_length=length)._splits["val"].lengths == blocks


def test_eos_stands_between_texts(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "a.jsonl", {"text": "one"}, {"text": "two\n", "source": 7})
    whole = tmp_path / "b.txt"
    whole.write_text("\ufeffthree\r\n\nfour", encoding="utf-8")
    expected = [*ids("one"), EOS, *ids("two\n"), EOS, *ids("three\r\n\nfour")]
    assert stream(module("test", test_files=[rows, str(whole)]), "test") == expected


def test_many_texts_are_joined_alike(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "a.jsonl", *({"text": "ab"} for _ in range(600)))
    expected = ([*ids("ab"), EOS] * 600)[:-1]
    assert stream(module("test", test_files=rows), "test") == expected


@pytest.mark.parametrize("adds", ["<bos>", "<eos>"])
def test_what_the_tokenizer_adds_by_itself_stays(tmp_path: Path, adds: str) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = character_tokenizer()
    template = "<bos> $A" if adds == "<bos>" else "$A <eos>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=template, special_tokens=[(adds, tokenizer.convert_tokens_to_ids(adds))]
    )
    rows = write_rows(tmp_path / "a.jsonl", {"text": "aa"}, {"text": "bb"})
    data = module("test", test_files=rows, tokenizer=tokenizer)
    expected = {"<bos>": "<bos>aa<eos><bos>bb", "<eos>": "aa<eos>bb<eos>"}
    assert tokenizer.decode(stream(data, "test")) == expected[adds]


@pytest.mark.parametrize("stage", ["val", "test"])
def test_the_perplexity_is_that_of_transformers(tmp_path: Path, files: dict[str, str], folder: str, stage: str) -> None:
    """Against the loss that transformers computes, block by block, without padding."""
    data = TextDataModule(**files, block_length=8, eval_batch_size=3)
    run = trainer(tmp_path)
    evaluate = run.validate if stage == "val" else run.test
    results = evaluate(PeraCausalLM(folder), data, verbose=False)[0]
    model = tiny_llama().from_pretrained(folder)
    tokens = torch.tensor(ids(Path(files[f"{stage}_files"]).read_text()))
    total, count = 0.0, 0
    for block in tokens.split(8):
        with torch.no_grad():
            mean = model(input_ids=block[None], labels=block[None]).loss.item()
        total, count = total + mean * (len(block) - 1), count + len(block) - 1
    assert count == 61 - 8
    assert results[f"{stage}_loss"] == pytest.approx(total / count, rel=1e-5)
    assert results[f"{stage}_perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)


class Seen(pl.Callback):
    """Keeps the batches of every training step."""

    def __init__(self) -> None:
        self.batches: dict[int, Tensor] = {}
        self.losses: dict[int, float] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.batches[trainer.global_step] = batch["input_ids"]
        self.losses[trainer.global_step] = outputs["loss"].item()


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")
def test_trains_and_goes_on_with_the_same_blocks(tmp_path: Path, files: dict[str, str], folder: str) -> None:
    def fit(epochs: int, start: Path | None = None) -> tuple[Seen, pl.Trainer]:
        torch.manual_seed(2)
        seen = Seen()
        run = trainer(tmp_path, seen, PeraCallback(rank=2, adapter_dir=str(tmp_path / "adapter")), max_epochs=epochs)
        data = TextDataModule(**files, block_length=8, batch_size=2, seed=3)
        lm = PeraCausalLM(folder, learning_rate=0.05, schedule="constant")
        run.fit(lm, data, ckpt_path=None if start is None else str(start), **SAFE_LOADING)
        return seen, run

    whole, _ = fit(3)
    first, run = fit(1)
    run.save_checkpoint(tmp_path / "first.ckpt")
    rest, _ = fit(3, tmp_path / "first.ckpt")
    assert [sorted(seen.batches) for seen in (first, rest)] == [[1, 2, 3, 4], [5, 6, 7, 8, 9, 10, 11, 12]]
    for step, batch in {**first.batches, **rest.batches}.items():
        assert torch.equal(batch, whole.batches[step])
    assert {**first.losses, **rest.losses} == whole.losses
    epochs = [torch.cat([whole.batches[step] for step in range(start, start + 4)]) for start in (1, 5)]
    assert sorted(epochs[0].tolist()) == sorted(epochs[1].tolist())
    assert not torch.equal(*epochs)
    assert whole.losses[12] < whole.losses[1]
    assert "train.txt" in (tmp_path / "adapter" / "README.md").read_text()


def test_the_order_depends_on_seed_and_epoch_alone(files: dict[str, str]) -> None:
    def order(epoch: int, seed: int = 0) -> list[int]:
        loader = module(**files, block_length=2, seed=seed).train_dataloader()
        loader.sampler.set_epoch(epoch)
        return list(loader.sampler)

    assert sorted(order(0)) == list(range(30))
    assert order(1) == order(1) != order(0)
    assert order(1, seed=1) != order(1)


def test_the_first_training_blocks_alone(tmp_path: Path, files: dict[str, str]) -> None:
    data = module(**files, max_train_blocks=3)
    assert stream(data) == ids(TEXT)[:24]
    assert stream(data, "val") == ids(TEXT[::-1])
    assert len(module(**files, max_train_blocks=99)._splits["train"]) == 7
    # A bad row after them is not read.
    rows = write_rows(tmp_path / "a.jsonl", *[{"text": TEXT}] * 256, {"text": ""})
    assert len(module(train_files=rows, max_train_blocks=3)._splits["train"]) == 3


def test_texts_are_tokenised_once(files: dict[str, str]) -> None:
    data = module(**files)
    before = data._splits["train"]
    Path(files["train_files"]).unlink()
    data.setup("fit")
    assert data._splits["train"] is before
    data._given_tokenizer = character_tokenizer()
    with pytest.raises(DataError, match=r"train\.txt does not exist"):
        data.setup("fit")


def test_fits_without_validation(files: dict[str, str]) -> None:
    assert module(train_files=files["train_files"]).val_dataloader() == []
    with pytest.raises(ConfigError, match="no data for the val split"):
        module("validate", train_files=files["train_files"])


def test_a_data_set_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(name: str, config: str | None) -> dict[str, list[dict[str, str]]]:
        asked.append((name, config))
        return {"train": [{"text": TEXT}, {"text": "more"}], "test": [{"text": "less"}]}

    monkeypatch.setattr(split_sources, "load_hub_dataset", load)
    data = TextDataModule(dataset="name/texts", dataset_config="small", tokenizer=TOKENIZER, block_length=3)
    data.prepare_data()
    data.setup("fit")
    assert stream(data) == [*ids(TEXT), EOS, *ids("more")]
    assert data.val_dataloader() == []
    data.setup("test")
    assert stream(data, "test") == ids("les")
    assert data.train_source == "name/texts"
    assert set(asked) == {("name/texts", "small")}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", r"a\.txt: there is no text"),
        ("a.txt", b" \n\n ", r"a\.txt: there is no text"),
        ("a.txt", b"good\nb\xe4d", r"a\.txt, line 2: this is not UTF-8"),
        ("a.jsonl", b"", r"a\.jsonl is empty"),
        ("a.jsonl", b'{"text": "a"}\n{"body": "b"}', r"line 2: the row has no text[\s\S]*the fields body"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ["b"]}', r"line 2: there is no text[\s\S]*list"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b"', r"line 2, column \d+: this is not JSON"),
        ("a.md", b"text", r"unknown kind[\s\S]*\.txt, \.jsonl"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        module("test", test_files=str(tmp_path / name))


def test_a_missing_file_lists_near_names(files: dict[str, str]) -> None:
    with pytest.raises(DataError, match=r"did you mean train\.txt"):
        module(train_files=files["train_files"].replace("train", "trian"))


def test_no_file_is_read_before_all_are_found(files: dict[str, str]) -> None:
    Path(files["train_files"]).write_bytes(b"\xff")
    Path(files["val_files"]).unlink()
    with pytest.raises(DataError, match=r"val\.txt does not exist"):
        module(**files)


def test_bad_rows_are_skipped_on_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = write_rows(tmp_path / "a.jsonl", {"text": "one"}, {"text": ""}, {"body": ""}, {"text": "two"})
    data = module("test", test_files=rows, on_bad_row="skip")
    assert stream(data, "test") == [*ids("one"), EOS, *ids("two")]
    assert "test: skipped 2 bad rows: " in caplog.text


def test_too_little_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("seven.s")
    with pytest.raises(DataError, match=r"train split has too little text[\s\S]*at least 8 tokens"):
        module(train_files=str(tmp_path / "a.txt"))
    rows = write_rows(tmp_path / "a.jsonl", {"text": "a"}, {"text": ""})
    with pytest.raises(DataError, match=r"test split has too little text[\s\S]*1 bad rows skipped[\s\S]*2 tokens"):
        module("test", test_files=rows, on_bad_row="skip")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_length": 1}, "block_length is too small"),
        ({"batch_size": 0}, "batch_size is too small"),
        ({"eval_batch_size": 0}, "eval_batch_size is too small"),
        ({"max_train_blocks": 0}, "max_train_blocks is too small"),
        ({"on_bad_row": "ignore"}, "on_bad_row has an unknown value"),
        ({"dataset": "name/texts"}, "contradict"),
    ],
)
def test_impossible_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TextDataModule("a.txt", **options)


def test_a_tokenizer_is_needed_that_has_eos(files: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="TextDataModule has no tokenizer"):
        module(**files, tokenizer=None)
    with pytest.raises(ConfigError, match="without an eos token"):
        module(**files, tokenizer=character_tokenizer(eos_token=None))


def test_says_what_it_trains_on_without_this_machines_folders() -> None:
    assert TextDataModule(["/home/me/a.txt", "b.jsonl"]).train_source == "a.txt, b.jsonl"
