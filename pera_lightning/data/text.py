"""The LightningDataModule of plain text for causal language models."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from torch.utils.data import default_collate

from pera_lightning.data.blocks import cut_blocks, read_texts, tokenise_texts
from pera_lightning.data.chat.conversations import BadRows, OnBadRow
from pera_lightning.data.collate import PaddingCollator
from pera_lightning.data.data_module import Collate, TokenisedDataModule
from pera_lightning.data.examples import ExampleDataset
from pera_lightning.data.option_errors import check_at_least_one
from pera_lightning.data.reading.row_files import TEXT_ENDINGS
from pera_lightning.data.reading.split_sources import RowSources, Split, as_paths
from pera_lightning.errors import ConfigError, DataError
from pera_lightning.run_log.messages import rank_zero_info


class TextDataModule(TokenisedDataModule):
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

    sources: RowSources
    _length_option = "block_length"

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
        sources = RowSources(
            files={"train": as_paths(train_files), "val": as_paths(val_files), "test": as_paths(test_files)},
            dataset=dataset,
            dataset_config=dataset_config,
            on_bad_row=on_bad_row,
            endings=TEXT_ENDINGS,
        )
        super().__init__(
            sources,
            tokenizer=tokenizer,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            seed=seed,
            num_workers=num_workers,
        )
        self.block_length = block_length
        self.max_train_blocks = max_train_blocks
        check_at_least_one("max_train_blocks", max_train_blocks)
        if block_length < 2:
            raise ConfigError(
                "block_length is too small.",
                got=block_length,
                expected="at least 2: the first token of a block predicts the second",
                fix="raise block_length",
            )

    def _use_tokenizer(self, tokenizer: Any) -> None:
        if tokenizer.eos_token_id is None:
            raise ConfigError(
                "The tokenizer has nothing to put between two texts.",
                got="a tokenizer without an eos token",
                expected="a tokenizer with one",
                fix="set tokenizer.eos_token",
            )
        self._end_id = tokenizer.eos_token_id

    def _tokenised(self, splits: Sequence[Split]) -> dict[Split, ExampleDataset]:
        for split in splits:
            self.sources.check(split)
        return {split: self._read(split) for split in splits}

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

    def _collate(self, split: Split) -> Collate:
        return default_collate if split == "train" else PaddingCollator(self._pad_id)
