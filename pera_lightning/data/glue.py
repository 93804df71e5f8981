"""The LightningDataModule for the tasks of GLUE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pera_lightning.data.labelled_texts import LabelledTextModule, LabelledTexts
from pera_lightning.data.reading.glue_sources import GlueSources, labels_of
from pera_lightning.data.reading.split_sources import Split
from pera_lightning.storage.remote import local_path

GlueTaskName = Literal["sst2", "mrpc", "cola", "qnli", "rte", "stsb", "mnli", "qqp"]


class GlueDataModule(LabelledTextModule):
    """A task of GLUE as batches for a sequence classifier.

    The labels of GLUE's test sets are not public, so that the validation set serves twice: a random half of it (of more
    than 2,000 rows: 1,000), which depends on `split_seed` alone, is the val split, to choose a checkpoint and settings
    by; the rest is the test split, to report. Prediction runs over the test split.

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
        split_seed: Decides which rows of the validation set are in which split.
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
            max_length=max_length,
            tokenizer=tokenizer,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            group_by_length=group_by_length,
            seed=seed,
            num_workers=num_workers,
        )
        self.task = task

    @property
    def num_labels(self) -> int:
        """Number of classes of the task; 1 for a regression."""
        return labels_of(self.task)

    def _tokenised(self, splits: Sequence[Split]) -> dict[Split, LabelledTexts]:
        return {
            split: self._tokenise(split, [row.texts for row in rows], [row.label for row in rows])
            for split, rows in self.sources.read(splits)
        }
