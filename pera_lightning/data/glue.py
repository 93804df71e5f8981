"""The LightningDataModule for the tasks of GLUE."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from pera_lightning.data.module_parts import (
    check_against_model,
    distributed_processes,
    find_tokenizer,
    loader_options,
)
from pera_lightning.data.options import check_at_least_one
from pera_lightning.data.reading.glue_files import GlueRow, check_task, split_in_halves
from pera_lightning.data.reading.glue_sources import HUB_DATASET, labels_of, training_rows, validation_rows
from pera_lightning.data.reading.row_sources import Split
from pera_lightning.data.reading.sampling import LengthGroupedSampler
from pera_lightning.errors import ConfigError
from pera_lightning.loading.tokenizer_trial import while_tokenising
from pera_lightning.option_checks import check_flags
from pera_lightning.run_log.messages import rank_zero_info
from pera_lightning.run_log.quiet import ignore_warning
from pera_lightning.storage.remote import local_path

Batch = dict[str, Tensor]
GlueTaskName = Literal["sst2", "mrpc", "cola", "qnli", "rte", "stsb", "mnli", "qqp"]


class GlueDataModule(LightningDataModule):
    """A task of GLUE as batches for a sequence classifier.

    The labels of GLUE's test sets are not public, so that the validation set serves twice: a random half of it, which
    depends on `split_seed` alone, is the val split, to choose a checkpoint and settings by; the other half is the
    test split, to report. Prediction runs over the test split.

    Batches are dicts of what the tokenizer returns for sentences or pairs (`input_ids`, `attention_mask`, ...), padded
    to the longest row, and `labels` (B): class numbers (int64) or, for STS-B, scores from 0 to 5 (float32).

    Args:
        task: Name of the task.
        folder: Folder of the task in GLUE's own format: `train.tsv` and `dev.tsv` (`dev_matched.tsv` for MNLI); null
            takes the data set nyu-mll/glue of the hub.
        tokenizer: Name, folder or object; by default the tokenizer of the LightningModule.
        max_length: Most tokens of a row; the longer of two sentences is cut first.
        batch_size: Rows of a training step on each device.
        eval_batch_size: Rows of a validation, test or prediction step; by default batch_size.
        group_by_length: Make training batches of rows of similar length, which are padded less.
        max_train_rows: Use only so many training rows, drawn at random by `seed`.
        seed: Decides the training rows drawn and their order in every epoch.
        split_seed: Decides the halves of the validation set.
        num_workers: Processes that prepare batches; rows are tokenised once, in setup, so 0 is usually best.

    Raises:
        ConfigError: An option has a value it cannot have.
    """

    def __init__(
        self,
        task: GlueTaskName,
        folder: str | None = None,
        *,
        tokenizer: Any = None,
        max_length: int = 128,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        group_by_length: bool = False,
        max_train_rows: int | None = None,
        seed: int = 0,
        split_seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        check_task(task)
        check_flags(group_by_length=group_by_length)
        self.task = task
        self.folder = None if folder is None else local_path(folder, "folder")
        self.max_length = max_length
        self.batch_size = batch_size
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.group_by_length = group_by_length
        self.max_train_rows = max_train_rows
        self.seed = seed
        self.split_seed = split_seed
        self.num_workers = num_workers
        self._given_tokenizer = tokenizer
        # What setup makes, once for each tokenizer.
        self._tokenizer: Any = None
        self._splits: dict[Split, list[dict[str, Any]]] = {}
        for name in ("max_length", "batch_size", "eval_batch_size", "max_train_rows"):
            check_at_least_one(name, getattr(self, name))

    @property
    def num_labels(self) -> int:
        """Number of classes of the task; 1 for a regression."""
        return labels_of(self.task)

    @property
    def train_source(self) -> str:
        """What it trains on, for model cards: names only, not where files lie on this machine."""
        return f"GLUE {self.task} ({HUB_DATASET if self.folder is None else 'train.tsv'})"

    def prepare_data(self) -> None:
        """Downloads the data set of the hub, on one process of each node."""
        if self.folder is None:
            training_rows(self.task, None)

    def setup(self, stage: str) -> None:
        """Reads and tokenises the splits that the stage needs and that are not there yet.

        Raises:
            ConfigError: There is no tokenizer, or max_length leaves nothing of the texts.
            DataError: A file is missing, empty or damaged, or the hub cannot be reached.
        """
        tokenizer = find_tokenizer(self, self._given_tokenizer)
        if tokenizer is not self._tokenizer:
            self._tokenizer, self._splits = tokenizer, {}
        if stage == "fit" and "train" not in self._splits:
            self._keep("train", self._drawn(training_rows(self.task, self.folder)))
        if "val" not in self._splits:
            rows = validation_rows(self.task, self.folder)
            val, test = split_in_halves(len(rows), self.split_seed)
            self._keep("val", [rows[index] for index in val])
            self._keep("test", [rows[index] for index in test])
        if self.num_workers == 0:
            # For rows that are already tokenised workers only cost.
            ignore_warning(".*does not have many workers")

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches of the train split, in an order that depends on seed and epoch alone."""
        rows = self._splits["train"]
        order = {"seed": self.seed, **distributed_processes(self)}
        if self.group_by_length:
            lengths = [len(row["input_ids"]) for row in rows]
            sampler: DistributedSampler[Any] = LengthGroupedSampler(lengths, self.batch_size, **order)
        else:
            # Also in a single process: unlike a RandomSampler it gives the order of an epoch after a resume.
            sampler = DistributedSampler(rows, shuffle=True, **order)  # type: ignore[arg-type]
        return self._dataloader("train", self.batch_size, sampler)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Batches of the half to select by, in the order of the file."""
        return self._dataloader("val", self.eval_batch_size)

    def test_dataloader(self) -> DataLoader[Batch]:
        """Batches of the half to report, in the order of the file."""
        return self._dataloader("test", self.eval_batch_size)

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The same batches as in a test."""
        return self.test_dataloader()

    def _drawn(self, rows: list[GlueRow]) -> list[GlueRow]:
        if self.max_train_rows is None or self.max_train_rows >= len(rows):
            return rows
        # Not the first ones: the files of some tasks are sorted by source.
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.seed))
        return [rows[index] for index in sorted(order[: self.max_train_rows].tolist())]

    def _length(self, texts: int) -> int:
        """Tokens to which rows are cut: no more than the model takes."""
        needed = self._tokenizer.num_special_tokens_to_add(pair=texts == 2) + texts
        if self.max_length < needed:
            # Of a length that leaves no token of a text, tokenizers cut nothing and say nothing.
            raise ConfigError(
                "max_length leaves nothing of the texts.",
                got=str(self.max_length),
                expected=f"{needed} or more: a token of each text beside those that the tokenizer adds",
                fix="raise max_length",
            )
        return min(self.max_length, self._tokenizer.model_max_length)

    def _keep(self, split: Split, rows: list[GlueRow]) -> None:
        length = self._length(len(rows[0].texts))
        texts = list(map(list, zip(*(row.texts for row in rows), strict=True)))
        with while_tokenising(f"The {split} split"):
            encoded = self._tokenizer(*texts, truncation=True, max_length=length)
        as_label = float if self.num_labels == 1 else int
        self._splits[split] = [
            {**{name: values[index] for name, values in encoded.items()}, "labels": as_label(row.label)}
            for index, row in enumerate(rows)
        ]
        tokens = [len(row["input_ids"]) for row in self._splits[split]]
        # What is cut fills it; of what fills it some may just fit.
        full = sum(count == length for count in tokens)
        rank_zero_info(f"{split}: {len(rows):,} rows, {sum(tokens):,} tokens, {full:,} rows of {length} or cut to it")

    def _dataloader(
        self, split: Split, batch_size: int, sampler: DistributedSampler[Any] | None = None
    ) -> DataLoader[Batch]:
        from transformers import DataCollatorWithPadding

        rows = self._splits[split]
        pad_id = -1 if self._tokenizer.pad_token_id is None else self._tokenizer.pad_token_id
        largest = max(pad_id, *(max(row["input_ids"], default=-1) for row in rows))
        check_against_model(self, split, largest_id=largest, longest=max(len(row["input_ids"]) for row in rows))
        return DataLoader(
            rows,  # type: ignore[arg-type]
            batch_size=batch_size,
            sampler=sampler,
            collate_fn=DataCollatorWithPadding(self._tokenizer),
            **loader_options(self.num_workers),
        )
