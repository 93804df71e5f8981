"""Rows of the GLUE tasks from tab-separated files, and the two parts of a validation set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pera_lightning.errors import ConfigError, DataError

_YES_NO: dict[str, float] = {"0": 0, "1": 1}
_ENTAILMENT: dict[str, float] = {"entailment": 0, "not_entailment": 1}


@dataclass(frozen=True)
class GlueTask:
    """The columns and labels of a task.

    Attributes:
        texts: Columns of the sentence, or of the two sentences.
        label: Column of the label.
        labels: Number of every label, those of the hub's data sets; None for a regression.
        header: The columns of files that have no header; None where the first line names them.
    """

    texts: tuple[str, ...]
    label: str
    labels: Mapping[str, float] | None
    header: tuple[str, ...] | None = None


GLUE_TASKS: dict[str, GlueTask] = {
    "sst2": GlueTask(("sentence",), "label", _YES_NO),
    "mrpc": GlueTask(("#1 String", "#2 String"), "Quality", _YES_NO),
    "cola": GlueTask(("sentence",), "label", _YES_NO, header=("source", "label", "mark", "sentence")),
    "qnli": GlueTask(("question", "sentence"), "label", _ENTAILMENT),
    "rte": GlueTask(("sentence1", "sentence2"), "label", _ENTAILMENT),
    "stsb": GlueTask(("sentence1", "sentence2"), "score", None),
    "mnli": GlueTask(("sentence1", "sentence2"), "gold_label", {"entailment": 0, "neutral": 1, "contradiction": 2}),
    "qqp": GlueTask(("question1", "question2"), "is_duplicate", _YES_NO),
}


@dataclass(frozen=True)
class GlueRow:
    """One sentence or a pair of them, with its class or score."""

    texts: tuple[str, ...]
    label: float


def check_task(task: str) -> None:
    """Raise a ConfigError unless this is a key of `GLUE_TASKS`."""
    if task not in GLUE_TASKS:
        raise ConfigError("This GLUE task is not known.", got=task, expected=sorted(GLUE_TASKS), fix="Choose a task.")


def read_glue_file(path: Path, task: str) -> list[GlueRow]:
    """Read a labelled file of a task.

    Args:
        path: The file, in GLUE's own format: tab-separated UTF-8 without quoting.
        task: A key of `GLUE_TASKS`.

    Returns:
        The rows, in the order of the file.

    Raises:
        ConfigError: If there is no such task.
        DataError: If the file is missing or empty, or a line cannot be used.
    """
    check_task(task)
    spec = GLUE_TASKS[task]
    if not path.is_file():
        raise DataError("A GLUE file is missing.", got=path, expected="a file", fix="Check the folder and the task.")
    # Not `splitlines`: it also cuts at the odd separators (U+2028, U+0085) inside sentences. Not `csv` with its
    # defaults: unbalanced quotes in the sentences would merge rows.
    lines = _text(path).split("\n")
    numbered = [(number, line.rstrip("\r").split("\t")) for number, line in enumerate(lines, 1) if line.strip()]
    columns = spec.header
    if columns is None and numbered:
        columns = tuple(numbered.pop(0)[1])
        _check_columns(columns, spec, path)
    if columns is None or not numbered:
        raise DataError("A GLUE file holds no rows.", got=path, expected="at least one row", fix="Check the file.")
    return [_row(fields, columns, spec, f"{path}, line {number}") for number, fields in numbered]


MOST_TO_SELECT_BY = 1000
"""Rows of a large validation set that select; RED, DeLoRA and the PERA paper report on the others."""


def cut_in_two(rows: int, seed: int) -> tuple[list[int], list[int]]:
    """Cut a validation set in two: one part to select a checkpoint by, the other to report.

    These are halves of up to 2,000 rows; of more, 1,000 select.

    Args:
        rows: Number of rows.
        seed: Decides which rows go where.

    Returns:
        The sorted indices of the selecting part, which gets the odd row, and of the reporting one.

    Raises:
        DataError: If there are fewer than two rows.
    """
    if rows < 2:
        raise DataError(
            "The validation set cannot be cut in two.",
            got=f"{rows} rows",
            expected="two or more",
            fix="Give more rows.",
        )
    order: Sequence[int] = torch.randperm(rows, generator=torch.Generator().manual_seed(seed)).tolist()
    selecting = min((rows + 1) // 2, MOST_TO_SELECT_BY)
    return sorted(order[:selecting]), sorted(order[selecting:])


def _text(path: Path) -> str:
    try:
        # From bytes: text mode would also cut lines at a lone carriage return.
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            "A GLUE file is not UTF-8.", got=f"{path}: {error}", expected="UTF-8", fix="Convert it."
        ) from error


def _check_columns(columns: tuple[str, ...], spec: GlueTask, path: Path) -> None:
    missing = [name for name in (*spec.texts, spec.label) if name not in columns]
    if missing:
        raise DataError(
            f"The header of {path} (line 1) lacks {missing}.",
            got=list(columns),
            expected=[*spec.texts, spec.label],
            fix="Check the task; the test files of GLUE hold no labels and cannot be used.",
        )


def _row(fields: list[str], columns: tuple[str, ...], spec: GlueTask, place: str) -> GlueRow:
    if len(fields) != len(columns):
        raise DataError(
            f"A row has the wrong number of columns: {place}.",
            got=f"{len(fields)} columns",
            expected=f"{len(columns)}: {list(columns)}",
            fix="Check the task and the line.",
        )
    values = dict(zip(columns, fields, strict=True))
    return GlueRow(tuple(values[name] for name in spec.texts), _label(values[spec.label], spec, place))


def _label(text: str, spec: GlueTask, place: str) -> float:
    if spec.labels is not None and text in spec.labels:
        return spec.labels[text]
    expected: object = "a number from 0 to 5" if spec.labels is None else list(spec.labels)
    if spec.labels is None:
        try:
            score = float(text)
        except ValueError:
            score = float("nan")
        if 0 <= score <= 5:
            return score
    raise DataError(f"A label is not known: {place}.", got=repr(text), expected=expected, fix="Check the task.")
