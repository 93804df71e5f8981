"""The LightningDataModule of plain text for causal language models."""

from __future__ import annotations

import itertools
from typing import Any

from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, default_collate

from pera_lightning.data.blocks import cut_blocks, read_texts, tokenise_texts
from pera_lightning.data.chat.conversations import BadRows, OnBadRow
from pera_lightning.data.collate import PaddingCollator
from pera_lightning.data.examples import ExampleDataset
from pera_lightning.data.module_parts import (
    check_against_model,
    distributed_processes,
    find_tokenizer,
    loader_options,
)
from pera_lightning.data.options import check_at_least_one
from pera_lightning.data.reading.row_sources import RowSources, Split, as_paths
from pera_lightning.data.reading.rows import TEXT_ENDINGS
from pera_lightning.errors import ConfigError, DataError
from pera_lightning.run_log.messages import rank_zero_info
from pera_lightning.run_log.quiet import ignore_warning

Batch = dict[str, Tensor]


class TextDataModule(LightningDataModule):
    """Plain text as batches for a causal language model that learns to continue it.

    A .txt file is one text; JSON (an array of objects), JSON Lines, CSV and parquet files and hub data sets hold one
    text per row, in the field `text`. The tokens of all texts stand one behind the other, with the eos token between
    two texts, and are cut into blocks of `block_length` that do not overlap: every token is predicted at most once,
    the first of a block never. The rest that fills no block is left out in training; validation and test keep it.
    Text is taken as it is, without a chat template. There is nothing to predict: a text asks no question.

    Batches are dicts of int64 tensors `input_ids` and `labels` (B, block_length), in validation and test also
    `attention_mask`, since a last, shorter block is padded on the right. Labels are not shifted; they are -100 at the
    first token of a block and at padding.

    Args:
        train_files: Path or paths of the texts to train on.
        val_files: Path or paths of the validation texts.
        test_files: Path or paths of the test texts.
        dataset: Data set of the hub (or a folder) with the splits train, validation and test, instead of files.
        dataset_config: Configuration (subset) of that data set.
        tokenizer: Name, folder or object; by default the tokenizer of the LightningModule.
        block_length: Tokens of a block, at most as many as the model was made for.
        batch_size: Blocks of a training step on each device.
        eval_batch_size: Blocks of a validation or test step; by default batch_size.
        max_train_blocks: Train on the first blocks only; what comes after them is not even read.
        on_bad_row: What happens at a blank text or a row without one: error stops, skip counts and reports it.
        seed: Decides the order of the training blocks in every epoch.
        num_workers: Processes that prepare batches; texts are tokenised once, in setup, so 0 is usually best.

    Raises:
        ConfigError: If options contradict each other or cannot be.
    """

    def __init__(
        self,
        train_files: str | list[str] | None = None,
        val_files: str | list[str] | None = None,
        test_files: str | list[str] | None = None,
        *,
        dataset: str | None = None,
        dataset_config: str | None = None,
        tokenizer: Any = None,
        block_length: int = 512,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        max_train_blocks: int | None = None,
        on_bad_row: OnBadRow = "error",
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.sources = RowSources(
            files={"train": as_paths(train_files), "val": as_paths(val_files), "test": as_paths(test_files)},
            dataset=dataset,
            dataset_config=dataset_config,
            on_bad_row=on_bad_row,
            endings=TEXT_ENDINGS,
        )
        self.block_length = block_length
        self.batch_size = batch_size
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.max_train_blocks = max_train_blocks
        self.seed = seed
        self.num_workers = num_workers
        self._given_tokenizer = tokenizer
        # What setup makes, once for each tokenizer.
        self._tokenizer: Any = None
        self._splits: dict[Split, ExampleDataset] = {}
        self._check_options()

    @property
    def train_source(self) -> str:
        """What it trains on, for model cards: names only, not where files lie on this machine."""
        return self.sources.train_name

    def prepare_data(self) -> None:
        """Downloads the data set of the hub, on one process of each node."""
        self.sources.download()

    def setup(self, stage: str) -> None:
        """Reads and tokenises the splits that the stage needs and that are not there yet.

        Raises:
            ConfigError: If there is no tokenizer, it has no eos token, or a split has no data.
            DataError: If a file is missing, empty or damaged, holds a bad row that is not to be skipped, or there is
                not enough text.
        """
        self._use_tokenizer(find_tokenizer(self, self._given_tokenizer))
        missing = [split for split in self.sources.needed_in(stage) if split not in self._splits]
        for split in missing:
            self.sources.check(split)
        for split in missing:
            self._splits[split] = self._read(split)
        if self.num_workers == 0:
            # For blocks that are already tokenised workers only cost.
            ignore_warning(".*does not have many workers")

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches of the train split, in an order that depends on seed and epoch alone."""
        blocks = self._checked("train")
        # Also in a single process: unlike a RandomSampler it gives the order of an epoch after a resume.
        order = {"seed": self.seed, **distributed_processes(self)}
        sampler: DistributedSampler[Any] = DistributedSampler(blocks, shuffle=True, **order)
        return self._dataloader(blocks, self.batch_size, sampler=sampler, collate_fn=default_collate)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Batches of the val split in the order of the text; no loader if there is no such split."""
        if "val" in self._splits:
            return self._eval_dataloader("val")
        ignore_warning("Total length of `list` across ranks is zero")
        return []

    def test_dataloader(self) -> DataLoader[Batch]:
        """Batches of the test split in the order of the text."""
        return self._eval_dataloader("test")

    def _use_tokenizer(self, tokenizer: Any) -> None:
        if tokenizer is self._tokenizer:
            return
        if tokenizer.eos_token_id is None:
            raise ConfigError(
                "The tokenizer has nothing to put between two texts.",
                got="a tokenizer without an eos token",
                expected="a tokenizer with one",
                fix="set tokenizer.eos_token",
            )
        self._tokenizer, self._splits = tokenizer, {}

    def _read(self, split: Split) -> ExampleDataset:
        training, bad_rows = split == "train", BadRows(self.sources.on_bad_row)
        texts = tokenise_texts(read_texts(self.sources, split, bad_rows), self._tokenizer)
        blocks = cut_blocks(texts, self.block_length, keep_rest=not training)
        dataset = ExampleDataset(itertools.islice(blocks, self.max_train_blocks if training else None))
        bad_rows.report(split)
        if len(dataset) == 0:
            raise DataError(
                f"The {split} split has too little text.",
                got=f"less than {'one block' if training else 'two tokens'}, {bad_rows.count} bad rows skipped",
                expected=f"at least {self.block_length if training else 2} tokens",
                fix="give more text, or lower block_length",
            )
        predicted = f"{dataset.answer_tokens:,} tokens predicted"
        rank_zero_info(f"{split}: {len(dataset):,} blocks of {self.block_length} tokens, {predicted}")
        return dataset

    def _eval_dataloader(self, split: Split) -> DataLoader[Batch]:
        return self._dataloader(self._checked(split), self.eval_batch_size, collate_fn=PaddingCollator(self._pad_id))

    @property
    def _pad_id(self) -> int:
        pad_id = self._tokenizer.pad_token_id
        # The collator masks whatever pads.
        return self._tokenizer.eos_token_id if pad_id is None else pad_id

    def _checked(self, split: Split) -> ExampleDataset:
        """The blocks of a split, which the model can read."""
        blocks = self._splits[split]
        largest = max(blocks.largest_id, self._pad_id)
        check_against_model(self, split, largest_id=largest, longest=max(blocks.lengths), option="block_length")
        return blocks

    def _dataloader(self, blocks: ExampleDataset, batch_size: int, **options: Any) -> DataLoader[Batch]:
        return DataLoader(
            blocks,
            batch_size=batch_size,
            **loader_options(self.num_workers),
            **options,
        )

    def _check_options(self) -> None:
        check_at_least_one("batch_size", self.batch_size)
        check_at_least_one("eval_batch_size", self.eval_batch_size)
        check_at_least_one("max_train_blocks", self.max_train_blocks)
        if self.block_length < 2:
            raise ConfigError(
                "block_length is too small.",
                got=self.block_length,
                expected="at least 2: the first token of a block predicts the second",
                fix="raise block_length",
            )
