"""Where the rows of a GLUE task come from: its own files, or the hub's data set."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pera_lightning.data.option_errors import check_at_least_one
from pera_lightning.data.reading.glue_files import GLUE_TASKS, GlueRow, check_task, cut_in_two, read_glue_file
from pera_lightning.data.reading.held_out import drawn
from pera_lightning.data.reading.row_files import load_hub_dataset
from pera_lightning.data.reading.split_sources import Split
from pera_lightning.errors import DataError

HUB_DATASET = "nyu-mll/glue"
_HUB_TEXTS: dict[str, tuple[str, ...]] = {
    "sst2": ("sentence",),
    "mrpc": ("sentence1", "sentence2"),
    "cola": ("sentence",),
    "qnli": ("question", "sentence"),
    "rte": ("sentence1", "sentence2"),
    "stsb": ("sentence1", "sentence2"),
    "mnli": ("premise", "hypothesis"),
    "qqp": ("question1", "question2"),
}


def labels_of(task: str) -> int:
    """Number of classes of a task; 1 for a regression."""
    labels = GLUE_TASKS[task].labels
    return 1 if labels is None else len(set(labels.values()))


@dataclass(frozen=True, kw_only=True)
class GlueSources:
    """Reads the splits of a task; see `GlueDataModule` for the options, of which `folder` is local here."""

    task: str
    folder: Path | None
    max_train_rows: int | None
    seed: int
    split_seed: int

    def __post_init__(self) -> None:
        check_task(self.task)
        check_at_least_one("max_train_rows", self.max_train_rows)

    @property
    def train_name(self) -> str:
        """What is trained on, for model cards: names only, not where files lie on this machine."""
        return f"GLUE {self.task} ({HUB_DATASET if self.folder is None else 'train.tsv'})"

    def download(self) -> None:
        """Brings the data set of the hub, if it is used, into the local cache."""
        if self.folder is None:
            self._rows("train")

    def needed_in(self, stage: str) -> list[Split]:
        """The splits that a stage of the Trainer uses; both parts of the validation set are read at once."""
        return ["train", "val", "test"] if stage == "fit" else ["val", "test"]

    def read(self, splits: Collection[Split]) -> Iterator[tuple[Split, list[GlueRow]]]:
        """Yields the rows of some splits.

        Raises:
            DataError: They cannot be read.
        """
        if "train" in splits:
            yield "train", self._drawn(self._rows("train"))
        if "val" in splits:
            rows = self._rows("validation_matched" if self.task == "mnli" else "validation")
            val, test = cut_in_two(len(rows), self.split_seed)
            yield "val", [rows[index] for index in val]
            yield "test", [rows[index] for index in test]

    def _rows(self, split: str) -> list[GlueRow]:
        if self.folder is None:
            return _hub_rows(self.task, split)
        return read_glue_file(self.folder / f"{split.replace('validation', 'dev')}.tsv", self.task)

    def _drawn(self, rows: list[GlueRow]) -> list[GlueRow]:
        return [rows[index] for index in drawn(len(rows), self.max_train_rows, self.seed)]


def _hub_rows(task: str, split: str) -> list[GlueRow]:
    splits: Mapping[str, Iterable[Mapping[str, Any]]] = load_hub_dataset(HUB_DATASET, task)
    rows = splits[split]
    texts = _HUB_TEXTS[task]
    found = [GlueRow(tuple(row[name] for name in texts), float(row["label"])) for row in rows]
    unlabelled = sum(row.label < 0 for row in found)
    if unlabelled or not found:
        raise DataError(
            "A split of GLUE has rows without a label.",
            got=f"{unlabelled} of {len(found)} rows of {task} ({split})",
            expected="labels of every row",
            fix="clear the cache of this data set and load it again",
        )
    return found
