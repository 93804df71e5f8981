from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DistributedSampler, SequentialSampler

from pera_lightning import InstructionDataModule
from pera_lightning.errors import ConfigError, DataError
from tests.support.models import tiny_llama
from tests.support.trainers import cpu_trainer


class Learner(pl.LightningModule):
    """Trains a tiny model and keeps the batches it saw."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.model = tiny_llama(vocab_size=len(tokenizer)).train()
        self.seen: dict[str, list[dict[str, torch.Tensor]]] = {}

    def step(self, name: str, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        self.seen.setdefault(f"{name} {self.current_epoch}", []).append(batch)
        return self.model(**batch, use_cache=False).loss

    def training_step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.step("train", batch)

    def validation_step(self, batch: dict[str, torch.Tensor]) -> None:
        self.step("val", batch)

    def test_step(self, batch: dict[str, torch.Tensor]) -> None:
        self.step("test", batch)

    def predict_step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.step("predict", batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def rows(tmp_path: Path) -> dict[str, str]:
    files = {}
    for split, count in (("train", 23), ("val", 5), ("test", 4)):
        lines = [
            json.dumps({"prompt": f"{split} {number}" + " why" * (number % 7), "completion": f"answer {number}"})
            for number in range(count)
        ]
        path = tmp_path / f"{split}.jsonl"
        path.write_text("\n".join(lines))
        files[f"{split}_files"] = str(path)
    return files


def trainer(tmp_path: Path, **options: Any) -> pl.Trainer:
    return cpu_trainer(tmp_path, enable_checkpointing=False, **options)


def questions(tokenizer: Any, batches: list[dict[str, torch.Tensor]]) -> list[str]:
    """First line of the user's turn of every example, in order."""
    found = []
    for batch in batches:
        text = tokenizer.decode(batch["input_ids"].flatten())
        found += [part.split("<|im_end|>")[0].split(" why")[0] for part in text.split("user\n")[1:]]
    return found


@pytest.mark.parametrize(
    "options", [{}, {"packing": True, "pack_length": 200}, {"padding_free": True}, {"group_by_length": True}]
)
def test_a_trainer_goes_through_all_rows_in_a_new_order_each_epoch(
    tmp_path: Path, rows: dict[str, str], chat_tokenizer: Any, options: dict[str, Any]
) -> None:
    learner = Learner(chat_tokenizer)
    data = InstructionDataModule(**rows, max_length=150, batch_size=4, eval_batch_size=3, seed=1, **options)
    trainer(tmp_path, max_epochs=2).fit(learner, data)
    epochs = [questions(chat_tokenizer, learner.seen[f"train {epoch}"]) for epoch in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(f"train {number}" for number in range(23))
    assert epochs[0] != epochs[1]
    packed = "packing" in options or "padding_free" in options
    for batch in learner.seen["train 0"]:
        assert set(batch) == {"input_ids", "labels", "position_ids" if packed else "attention_mask"}
        assert all(values.dtype == torch.int64 for values in batch.values())
        assert batch["labels"][0, 0] == -100
        assert (batch["input_ids"].shape[0] == 1) if packed else (batch["input_ids"].shape[0] <= 4)
    for batch in learner.seen["val 0"]:
        assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert [len(batch["input_ids"]) for batch in learner.seen["val 1"]] == [3, 2]
    again = Learner(chat_tokenizer)
    data = InstructionDataModule(**rows, max_length=150, batch_size=4, eval_batch_size=3, seed=1, **options)
    trainer(tmp_path, max_epochs=1).fit(again, data)
    assert questions(chat_tokenizer, again.seen["train 0"]) == epochs[0]


def test_validate_test_and_predict_keep_the_order_of_the_file(
    tmp_path: Path, rows: dict[str, str], chat_tokenizer: Any
) -> None:
    learner = Learner(chat_tokenizer)
    data = InstructionDataModule(**rows, batch_size=3)
    run = trainer(tmp_path)
    run.validate(learner, data, verbose=False)
    run.test(learner, data, verbose=False)
    run.predict(learner, data)
    assert questions(chat_tokenizer, learner.seen["val 0"]) == [f"val {number}" for number in range(5)]
    for name in ("test 0", "predict 0"):
        assert questions(chat_tokenizer, learner.seen[name]) == [f"test {number}" for number in range(4)]


def test_a_test_needs_the_test_file_only(tmp_path: Path, rows: dict[str, str], chat_tokenizer: Any) -> None:
    learner = Learner(chat_tokenizer)
    data = InstructionDataModule(str(tmp_path / "gone.jsonl"), test_files=rows["test_files"])
    trainer(tmp_path).test(learner, data, verbose=False)
    assert list(learner.seen) == ["test 0"]
    with pytest.raises(DataError, match=r"gone\.jsonl does not exist"):
        trainer(tmp_path, max_epochs=1).fit(learner, data)


def test_fit_works_without_validation_rows(tmp_path: Path, rows: dict[str, str], chat_tokenizer: Any) -> None:
    learner = Learner(chat_tokenizer)
    trainer(tmp_path, max_epochs=1).fit(learner, InstructionDataModule(rows["train_files"]))
    assert list(learner.seen) == ["train 0"]
    with pytest.raises(ConfigError, match="no data for the val split"):
        trainer(tmp_path).validate(learner, InstructionDataModule(rows["train_files"]))


def test_setup_tokenises_each_split_once_for_a_tokenizer(
    rows: dict[str, str], make_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = make_tokenizer(eos_token="<|im_end|>")
    data = InstructionDataModule(**rows, tokenizer=tokenizer)
    with caplog.at_level(logging.INFO):
        for stage in ("fit", "validate", "fit", "test", "predict"):
            data.setup(stage)
    reports = [record.message for record in caplog.records if "answer tokens" in record.message]
    assert [report.split(":")[0] for report in reports] == ["train", "val", "test"]
    before = data.test_dataloader().dataset[0]["input_ids"]
    data._given_tokenizer = make_tokenizer(eos_token="<|endoftext|>")
    data.setup("test")
    assert not torch.equal(data.test_dataloader().dataset[0]["input_ids"], before)


def test_one_line_reports_each_split(
    rows: dict[str, str], chat_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    data = InstructionDataModule(**rows, tokenizer=chat_tokenizer, packing=True, pack_length=2000, max_val_rows=2)
    with caplog.at_level(logging.INFO):
        data.setup("fit")
    packs = len(data.train_dataloader().dataset)
    [train] = [record.message for record in caplog.records if record.message.startswith("train: ")]
    [val] = [record.message for record in caplog.records if record.message.startswith("val: ")]
    assert train.startswith("train: 23 rows, ")
    assert train.endswith(f" 0 prompts cut, 0 answers cut, 0 rows skipped, {packs} packs")
    assert val.startswith("val: 2 rows, ")
    assert val.endswith("0 rows skipped")


def test_padding_needs_no_pad_token(rows: dict[str, str], plain_tokenizer: Any) -> None:
    assert plain_tokenizer.pad_token is None
    vocabulary = len(plain_tokenizer)
    data = InstructionDataModule(test_files=rows["test_files"], tokenizer=plain_tokenizer)
    data.setup("test")
    [batch] = data.test_dataloader()
    padding = batch["attention_mask"] == 0
    assert padding.any()
    assert (batch["input_ids"][padding] == plain_tokenizer.eos_token_id).all()
    assert (batch["labels"][padding] == -100).all()
    # The eos token that ends an answer is learnt all the same.
    ends = batch["attention_mask"].sum(dim=1) - 1
    assert (batch["labels"][range(len(ends)), ends] == plain_tokenizer.eos_token_id).all()
    assert len(plain_tokenizer) == vocabulary


@pytest.mark.parametrize("damage", [{"chat_template": [1]}, {"added_tokens_decoder": 3}])
def test_a_tokenizer_that_cannot_be_loaded_is_named(
    tmp_path: Path, rows: dict[str, str], chat_tokenizer: Any, damage: dict[str, Any]
) -> None:
    chat_tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    with pytest.raises(ConfigError, match="The tokenizer cannot be loaded"):
        InstructionDataModule(test_files=rows["test_files"], tokenizer=str(tmp_path)).setup("test")


def test_a_tokenizer_may_be_a_folder(tmp_path: Path, rows: dict[str, str], chat_tokenizer: Any) -> None:
    chat_tokenizer.save_pretrained(tmp_path / "tokenizer")
    loaded, given = (
        InstructionDataModule(test_files=rows["test_files"], tokenizer=tokenizer)
        for tokenizer in (str(tmp_path / "tokenizer"), chat_tokenizer)
    )
    for data in (loaded, given):
        data.setup("test")
    for first, second in zip(loaded.test_dataloader(), given.test_dataloader(), strict=True):
        assert all(torch.equal(first[name], second[name]) for name in second)


def test_without_a_tokenizer_the_message_says_where_to_set_it(tmp_path: Path, rows: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"has no tokenizer[\s\S]*got: +no trainer"):
        InstructionDataModule(**rows).setup("fit")
    learner = Learner(range(64))
    del learner.tokenizer
    with pytest.raises(ConfigError, match="a Learner without the attribute tokenizer"):
        trainer(tmp_path).test(learner, InstructionDataModule(**rows))


def test_options_reach_the_encoder(rows: dict[str, str], chat_tokenizer: Any) -> None:
    texts = []
    for options in ({"system_prompt": "be brief"}, {"use_chat_template": False}, {"max_length": 60}):
        data = InstructionDataModule(**rows, tokenizer=chat_tokenizer, **options)
        data.setup("test")
        texts.append(chat_tokenizer.decode(data.test_dataloader().dataset[3]["input_ids"]))
    assert texts[0].startswith("<|im_start|>system\nbe brief<|im_end|>")
    assert texts[1].startswith("### User:\ntest 3")
    assert texts[2].endswith("answer 3<|im_end|>")


@pytest.mark.parametrize("options", [{}, {"group_by_length": True}, {"packing": True}])
def test_the_train_loader_shards_itself_so_that_lightning_leaves_it(
    rows: dict[str, str], chat_tokenizer: Any, options: dict[str, Any]
) -> None:
    class TwoProcesses:
        def __init__(self, rank: int) -> None:
            self.distributed_sampler_kwargs = {"num_replicas": 2, "rank": rank}

    data = InstructionDataModule(**rows, tokenizer=chat_tokenizer, **options)
    data.setup("fit")
    shares = []
    for rank in (0, 1):
        data.trainer = TwoProcesses(rank)  # type: ignore[assignment]
        loader = data.train_dataloader()
        assert isinstance(loader.sampler, DistributedSampler)
        shares.append(set(loader.sampler))
    assert shares[0] | shares[1] == set(range(len(loader.dataset)))
    assert len(shares[0] & shares[1]) <= 1
    # Lightning shards evaluation by itself.
    assert isinstance(data.val_dataloader().sampler, SequentialSampler)


def test_workers_give_the_same_batches(rows: dict[str, str], chat_tokenizer: Any) -> None:
    batches = []
    for workers in (0, 1):
        data = InstructionDataModule(**rows, tokenizer=chat_tokenizer, num_workers=workers)
        data.setup("fit")
        loader = data.train_dataloader()
        assert loader.persistent_workers == (workers > 0)
        batches.append([batch["input_ids"] for batch in loader])
    assert all(torch.equal(first, second) for first, second in zip(*batches, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 0}, "max_length is too small"),
        ({"batch_size": 0}, "batch_size is too small"),
        ({"eval_batch_size": 0}, "eval_batch_size is too small"),
        ({"packing": True, "group_by_length": True}, "packing and group_by_length"),
        ({"packing": True, "padding_free": True}, "packing and padding_free"),
        ({"padding_free": True, "group_by_length": True}, "padding_free and group_by_length"),
        ({"packing": True, "max_length": 100, "pack_length": 99}, "max_length 100 and pack_length 99"),
        ({"format": "chat"}, "format has an unknown value"),
        ({"val_split": 2}, "val_split must be a share"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        InstructionDataModule("train.jsonl", **options)


def test_options_come_from_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.cli import LightningCLI

    monkeypatch.setattr("sys.argv", ["program"])
    # Lightning 2.6 calls jsonargparse by names that its newest versions deprecate.
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    options = ["train_files=[a.jsonl, b.csv]", "test_files=c.json", "val_split=0.1", "on_bad_row=skip"]
    quiet = ["--trainer.logger=false", "--trainer.accelerator=cpu", "--trainer.enable_checkpointing=false"]
    cli = LightningCLI(
        pl.LightningModule,
        InstructionDataModule,
        run=False,
        subclass_mode_model=False,
        save_config_callback=None,
        seed_everything_default=False,
        args=[*quiet, *(f"--data.{option}" for option in options)],
    )
    sources = cli.datamodule.sources
    assert sources.files == {"train": [Path("a.jsonl"), Path("b.csv")], "val": [], "test": [Path("c.json")]}
    assert (sources.val_split, sources.on_bad_row) == (0.1, "skip")
