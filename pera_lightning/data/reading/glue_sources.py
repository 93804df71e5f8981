"""Where the rows of a GLUE task come from: its own files, or the hub's data set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pera_lightning.data.reading.glue_files import GLUE_TASKS, GlueRow, read_glue_file
from pera_lightning.data.reading.rows import load_hub_dataset
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


def training_rows(task: str, folder: Path | None) -> list[GlueRow]:
    """The training rows of a task, from `train.tsv` in its folder, or without a folder from the hub.

    Raises:
        DataError: They cannot be read.
    """
    return _hub_rows(task, "train") if folder is None else read_glue_file(folder / "train.tsv", task)


def validation_rows(task: str, folder: Path | None) -> list[GlueRow]:
    """The validation rows, those of the matched genres for MNLI.

    Raises:
        DataError: They cannot be read.
    """
    ending = "_matched" if task == "mnli" else ""
    if folder is None:
        return _hub_rows(task, f"validation{ending}")
    return read_glue_file(folder / f"dev{ending}.tsv", task)


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
