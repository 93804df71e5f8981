"""What the DataModules share: a tokenizer, splits that are tokenised once, and their loaders."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from pera_lightning.data.model_limits import ModelLimits
from pera_lightning.data.option_errors import check_at_least_one
from pera_lightning.data.reading.glue_sources import GlueSources
from pera_lightning.data.reading.sampling import LengthGroupedSampler
from pera_lightning.data.reading.split_sources import RowSources, Split
from pera_lightning.errors import ConfigError
from pera_lightning.loading.pretrained import PretrainedSource
from pera_lightning.loading.pretrained_tokenizer import read_tokenizer
from pera_lightning.option_checks import check_flags
from pera_lightning.run_log.quiet import ignore_warning

Batch = dict[str, Tensor]
Collate = Callable[[Any], Batch]


class TokenisedDataModule(LightningDataModule, ABC):
    """Rows that are tokenised in setup, once for each tokenizer, in batches.

    Args:
        sources: Where the rows come from.
        tokenizer: Name, folder or object; None is the tokenizer of the LightningModule.
        batch_size: Rows of a training step on each device.
        eval_batch_size: Rows of a validation, test or prediction step; None is batch_size.
        group_by_length: Make training batches of rows of similar length.
        seed: Decides the order of the training rows in every epoch.
        num_workers: Processes that prepare batches.

    Raises:
        ConfigError: An option has a value it cannot have.
    """

    # The option that makes rows shorter.
    _length_option = "max_length"
    # Whether the rows of a training batch stand end to end.
    _end_to_end = False
    # What pads where the tokenizer has no token for it; -1: nothing.
    _end_id = -1

    def __init__(
        self,
        sources: RowSources | GlueSources,
        *,
        tokenizer: Any,
        batch_size: int,
        eval_batch_size: int | None,
        group_by_length: bool = False,
        seed: int,
        num_workers: int,
    ) -> None:
        super().__init__()
        self.sources = sources
        self.batch_size = batch_size
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.group_by_length = group_by_length
        self.seed = seed
        self.num_workers = num_workers
        self._given_tokenizer = tokenizer
        # What setup makes, once for each tokenizer.
        self._tokenizer: Any = None
        self._splits: dict[Split, Any] = {}
        check_flags(group_by_length=group_by_length)
        check_at_least_one("batch_size", batch_size)
        check_at_least_one("eval_batch_size", self.eval_batch_size)

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
            ConfigError: There is no tokenizer, it or an option cannot be used with the rows, or a split has no data.
            DataError: Rows are missing, damaged or too few, or a bad one is not to be skipped.
        """
        tokenizer = self._find_tokenizer()
        if tokenizer is not self._tokenizer:
            self._use_tokenizer(tokenizer)
            self._tokenizer, self._splits = tokenizer, {}
        missing = [split for split in self.sources.needed_in(stage) if split not in self._splits]
        self._splits.update(self._tokenised(missing))
        if self.num_workers == 0:
            # For rows that are already tokenised workers only cost.
            ignore_warning(".*does not have many workers")

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches of the train split, in an order that depends on seed and epoch alone."""
        # Not the world size: under tensor parallelism some processes share their data.
        processes = self.trainer.distributed_sampler_kwargs if self.trainer is not None else None
        order = {"seed": self.seed, **(processes or {"num_replicas": 1, "rank": 0})}
        rows = self._training_rows()
        if self.group_by_length:
            sampler: DistributedSampler[Any] = LengthGroupedSampler(rows.lengths, self.batch_size, **order)
        else:
            # Also in a single process: unlike a RandomSampler it gives the order of an epoch after a resume.
            sampler = DistributedSampler(rows, shuffle=True, **order)
        return self._dataloader("train", rows, self.batch_size, sampler)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Batches of the val split in the order of its rows; no loader if there is no such split."""
        if "val" in self._splits:
            return self._dataloader("val", self._splits["val"], self.eval_batch_size)
        ignore_warning("Total length of `list` across ranks is zero")
        return []

    def test_dataloader(self) -> DataLoader[Batch]:
        """Batches of the test split in the order of its rows."""
        return self._dataloader("test", self._splits["test"], self.eval_batch_size)

    def described(self, number: int) -> dict[str, Any]:
        """What a file of predictions says of a row beside its prediction, with names of columns.

        Args:
            number: Of the row in the data set of `predict_dataloader`.
        """
        return {"index": number}

    def _use_tokenizer(self, tokenizer: Any) -> None:
        """Checks a new tokenizer and makes what depends on it."""

    @abstractmethod
    def _tokenised(self, splits: Sequence[Split]) -> dict[Split, Any]:
        """Reads some splits: data sets with `lengths`, the tokens of every row, and their `largest_id`."""

    def _training_rows(self) -> Any:
        """What training draws from: the rows, or several of them at once."""
        return self._splits["train"]

    @abstractmethod
    def _collate(self, split: Split) -> Collate:
        """What makes batches."""

    @property
    def _pad_id(self) -> int:
        # A new token would not be in the model's vocabulary; the collators mask whatever pads.
        return self._end_id if self._tokenizer.pad_token_id is None else self._tokenizer.pad_token_id

    def _dataloader(
        self, split: Split, dataset: Any, batch_size: int, sampler: DistributedSampler[Any] | None = None
    ) -> DataLoader[Batch]:
        self._check_against_model(split)
        return DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            collate_fn=self._collate(split),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def _check_against_model(self, split: Split) -> None:
        """Raises unless the model that is to read the rows of a split, if there is one, has their ids and positions."""
        limits = ModelLimits.of(getattr(self.trainer, "lightning_module", None))
        if limits is None:
            return
        rows = self._splits[split]
        limits.check_rows(
            f"{split} split",
            largest_id=max(rows.largest_id, self._pad_id),
            longest=max(rows.lengths),
            shorter=f"lower {self._length_option}",
            packed=split == "train" and self._end_to_end,
        )

    def _find_tokenizer(self) -> Any:
        given = self._given_tokenizer
        if isinstance(given, str | os.PathLike):
            return _named_tokenizer(os.fspath(given))
        module = self.trainer.lightning_module if self.trainer is not None else None
        tokenizer = getattr(module, "tokenizer", None) if given is None else given
        if tokenizer is None:
            raise ConfigError(
                f"{type(self).__name__} has no tokenizer.",
                got="no trainer" if module is None else f"a {type(module).__name__} without the attribute tokenizer",
                expected="a tokenizer of transformers",
                fix="set tokenizer to its name or folder, or train a module that has one, such as PeraCausalLM",
            )
        return tokenizer


@cache
def _named_tokenizer(name: str) -> Any:
    """Once for each name: a data module keeps the rows that it has tokenised while its tokenizer is the same."""
    return read_tokenizer(PretrainedSource(name))
