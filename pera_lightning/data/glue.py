"""The LightningDataModule for the tasks of GLUE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch.utils.data import DataLoader

from pera_lightning.data.data_module import Batch, Collate, TokenisedDataModule
from pera_lightning.data.options import check_at_least_one
from pera_lightning.data.reading.glue_files import GlueRow
from pera_lightning.data.reading.glue_sources import GlueSources, labels_of
from pera_lightning.data.reading.row_sources import Split
from pera_lightning.errors import ConfigError
from pera_lightning.loading.tokenizer_trial import while_tokenising
from pera_lightning.run_log.messages import rank_zero_info
from pera_lightning.storage.remote import local_path

GlueTaskName = Literal["sst2", "mrpc", "cola", "qnli", "rte", "stsb", "mnli", "qqp"]


class _Examples(list[dict[str, Any]]):
    """What the tokenizer makes of every row, with its label."""

    @property
    def lengths(self) -> list[int]:
        return [len(example["input_ids"]) for example in self]

    @property
    def largest_id(self) -> int:
        return max(max(example["input_ids"], default=-1) for example in self)


class GlueDataModule(TokenisedDataModule):
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

    sources: GlueSources

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
        sources = GlueSources(
            task=task,
            folder=None if folder is None else local_path(folder, "folder"),
            max_train_rows=max_train_rows,
            seed=seed,
            split_seed=split_seed,
        )
        super().__init__(
            sources,
            tokenizer=tokenizer,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            group_by_length=group_by_length,
            seed=seed,
            num_workers=num_workers,
        )
        self.task = task
        self.max_length = max_length
        check_at_least_one("max_length", max_length)

    @property
    def num_labels(self) -> int:
        """Number of classes of the task; 1 for a regression."""
        return labels_of(self.task)

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The same batches as in a test."""
        return self.test_dataloader()

    def _tokenised(self, splits: Sequence[Split]) -> dict[Split, _Examples]:
        return {split: self._tokenise(split, rows) for split, rows in self.sources.read(splits)}

    def _tokenise(self, split: Split, rows: list[GlueRow]) -> _Examples:
        length = self._length(len(rows[0].texts))
        texts = list(map(list, zip(*(row.texts for row in rows), strict=True)))
        with while_tokenising(f"The {split} split"):
            encoded = self._tokenizer(*texts, truncation=True, max_length=length)
        as_label = float if self.num_labels == 1 else int
        examples = _Examples(
            {**{name: values[index] for name, values in encoded.items()}, "labels": as_label(row.label)}
            for index, row in enumerate(rows)
        )
        tokens = examples.lengths
        # What is cut fills it; of what fills it some may just fit.
        full = tokens.count(length)
        rank_zero_info(f"{split}: {len(rows):,} rows, {sum(tokens):,} tokens, {full:,} rows of {length} or cut to it")
        return examples

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

    def _collate(self, split: Split) -> Collate:
        from transformers import DataCollatorWithPadding

        return DataCollatorWithPadding(self._tokenizer)
