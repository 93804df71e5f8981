"""The LightningDataModule of one's own texts with classes or scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.data import DataLoader

from pera_lightning.data.chat.conversations import OnBadRow
from pera_lightning.data.data_module import Batch
from pera_lightning.data.labelled_texts import LabelledTextModule, LabelledTexts
from pera_lightning.data.option_errors import contradiction
from pera_lightning.data.reading.class_labels import ClassName, Labels, checked_names
from pera_lightning.data.reading.labelled_rows import LabelledRow, LabelledSources
from pera_lightning.data.reading.split_sources import Split, as_paths
from pera_lightning.data.reading.text_fields import ChosenFields
from pera_lightning.option_checks import check_flags
from pera_lightning.run_log.messages import rank_zero_info


class ClassificationDataModule(LabelledTextModule):
    """One's own texts, or pairs of texts, with the class or score of each, as batches for a sequence classifier.

    Files are CSV, JSON Lines, JSON (an array of objects) or parquet. Every row has a text (`text_field`), or two that
    are classified together (`text_pair_field`), and a label: the name or number of its class, or a score. Which classes
    there are the training rows tell, unless `labels` does; their names go into the model's config and the adapter
    folder. A row whose label is unknown, missing or a list, or whose text is empty, is a bad row.

    Prediction runs over `predict_files`, whose rows need no label, or without them over the test split.

    Batches are dicts of what the tokenizer returns (`input_ids`, `attention_mask`, ...), padded to the longest row, and
    `labels` (B): class numbers (int64) or scores (float32).

    Args:
        train_files: Path or paths of the training rows.
        val_files: Path or paths of the validation rows.
        test_files: Path or paths of the test rows.
        predict_files: Path or paths of the rows to predict.
        dataset: Data set of the hub (or a folder) with the splits train, validation and test, instead of files.
        dataset_config: Configuration (subset) of that data set.
        val_split: Share of the training rows held out for validation where there are no val_files, e.g. 0.1.
        text_field: Field of the text, or of the first of two; by default text or sentence, or both fields of a pair
            with usual names (text and text_pair, sentence1 and sentence2, premise and hypothesis, ...).
        text_pair_field: Field of the second text of a pair.
        label_field: Field of the label; by default label, class or score.
        labels: Names or numbers of the classes in the order of their numbers; by default those of the training rows,
            sorted.
        regression: Whether labels are scores; by default they are if all are numbers and one has a decimal point.
        tokenizer: Name, folder or object; by default the tokenizer of the LightningModule.
        max_length: Most tokens of a row; the longer of two texts is cut first.
        batch_size: Rows of a training step on each device.
        eval_batch_size: Rows of a validation, test or prediction step; by default batch_size.
        group_by_length: Make training batches of rows of similar length, which are padded less.
        on_bad_row: What happens at a row that cannot be used: error stops, skip counts and reports it.
        max_train_rows: Use only so many training rows, drawn at random by `seed`.
        max_val_rows: Use only so many validation rows, likewise.
        max_test_rows: Use only so many test rows, likewise.
        seed: Decides the rows held out and drawn, and the order of every epoch.
        num_workers: Processes that prepare batches; rows are tokenised once, in setup, so 0 is usually best.

    Raises:
        ConfigError: Options contradict each other or cannot be.
    """

    sources: LabelledSources

    def __init__(
        self,
        train_files: str | list[str] | None = None,
        val_files: str | list[str] | None = None,
        test_files: str | list[str] | None = None,
        predict_files: str | list[str] | None = None,
        *,
        dataset: str | None = None,
        dataset_config: str | None = None,
        val_split: float = 0.0,
        text_field: str | None = None,
        text_pair_field: str | None = None,
        label_field: str | None = None,
        labels: list[int | str] | None = None,
        regression: bool | None = None,
        tokenizer: Any = None,
        max_length: int = 128,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        group_by_length: bool = False,
        on_bad_row: OnBadRow = "error",
        max_train_rows: int | None = None,
        max_val_rows: int | None = None,
        max_test_rows: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        sources = LabelledSources(
            files={
                "train": as_paths(train_files),
                "val": as_paths(val_files),
                "test": as_paths(test_files),
                "predict": as_paths(predict_files),
            },
            dataset=dataset,
            dataset_config=dataset_config,
            on_bad_row=on_bad_row,
            fields=ChosenFields(text_field, text_pair_field, label_field),
            regression=regression,
            val_split=val_split,
            limits={"train": max_train_rows, "val": max_val_rows, "test": max_test_rows},
            seed=seed,
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
        self._known = _given_labels(labels, regression)
        self._rows: dict[Split, list[LabelledRow]] = {}

    @property
    def labels(self) -> tuple[ClassName, ...] | None:
        """Names or numbers of the classes in their order, none of scores; None before they are known."""
        return None if self._known is None else self._known.names

    @property
    def num_labels(self) -> int | None:
        """Number of classes, 1 of scores; None before it is known."""
        return None if self._known is None else self._known.count

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Batches of the rows to predict in the order of their file."""
        split = self._predicted_split
        return self._dataloader(split, self._splits[split], self.eval_batch_size)

    def described(self, number: int) -> dict[str, Any]:
        """The row's number in its file and its texts, and its true class or score where it has one."""
        row = self._rows[self._predicted_split][number]
        return self._as_columns(row.index, row.texts, row.label)

    @property
    def _predicted_split(self) -> Split:
        [split] = self.sources.needed_in("predict")
        return split

    def _tokenised(self, splits: Sequence[Split]) -> dict[Split, LabelledTexts]:
        if not splits:
            return {}
        labels, found = self.sources.read(splits, self._known or self._labels_of_module())
        if self._known is None:
            rank_zero_info(f"{'training on' if 'train' in splits else 'the model has'} {labels}")
        self._known = labels
        self._rows.update(found)
        return {
            split: self._tokenise(split, [row.texts for row in rows], [row.target for row in rows])
            for split, rows in found.items()
        }

    def _labels_of_module(self) -> Labels | None:
        """The classes of a module that was trained before, which may have seen others than these rows have."""
        module = None if self.trainer is None else self.trainer.lightning_module
        names = getattr(module, "labels", None)
        return Labels(tuple(names)) if names else None


def _given_labels(names: list[int | str] | None, regression: bool | None) -> Labels | None:
    if regression is not None:
        check_flags(regression=regression)
    if names is not None and regression:
        raise contradiction("labels and regression", "labels of classes, or regression for scores")
    if names is not None:
        return Labels(checked_names(names))
    return Labels() if regression else None
