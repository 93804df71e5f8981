"""What an evaluation found: predictions, accuracies with their errors, a table and files."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pera_lightning.storage.folder_kind import FolderKind
from pera_lightning.storage.remote import local_path
from pera_lightning.storage.whole_folder import whole_folder

if TYPE_CHECKING:
    from pera_lightning.plain_table import PlainTable

RESULTS_FILE = "results.json"


def _is_results(values: dict[str, Any]) -> bool:
    return {"how", "tasks", "mean", "seconds"} <= values.keys() and isinstance(values["tasks"], dict)


RESULTS = FolderKind(
    "results of an evaluation",
    marker=RESULTS_FILE,
    recognise=_is_results,
    listed=lambda values: [rows_file(task) for task in values["tasks"]],
)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model answered to one question.

    Args:
        question: The question.
        answer: The right option.
        predicted: The option that the model chose; None where it named none.
        generated: What it wrote, where it wrote anything.
        log_likelihoods: Of every option in nats, where options were ranked.
    """

    question: str
    answer: str
    predicted: str | None
    generated: str | None = None
    log_likelihoods: dict[str, float] | None = None

    @property
    def correct(self) -> bool:
        """Whether it is the right option."""
        return self.predicted == self.answer


@dataclass(frozen=True)
class Evaluation:
    """Predictions on several tasks.

    Args:
        how: "generate" or "rank".
        predictions: Of every task, in the order of its file.
        seconds: Time that the model took.
    """

    how: str
    predictions: Mapping[str, Sequence[Prediction]]
    seconds: float

    def accuracy(self, task: str) -> float:
        """Share of right answers to a task."""
        return statistics.fmean(prediction.correct for prediction in self.predictions[task])

    def error(self, task: str) -> float:
        """Standard error of the accuracy: `sqrt(p (1 - p) / n)`; nan of a single question."""
        if len(self.predictions[task]) == 1:
            return math.nan
        return math.sqrt(self.accuracy(task) * (1 - self.accuracy(task)) / len(self.predictions[task]))

    @property
    def mean_accuracy(self) -> float:
        """Mean of the tasks' accuracies, each task counted once."""
        return statistics.fmean(map(self.accuracy, self.predictions))

    @property
    def mean_error(self) -> float:
        """Standard error of the mean accuracy, tasks taken as independent; nan where that of a task is unknown."""
        return math.hypot(*map(self.error, self.predictions)) / len(self.predictions)

    def summary(self) -> dict[str, Any]:
        """The numbers, as `results.json` holds them; an unknown standard error is None."""
        tasks = {
            task: {
                "accuracy": self.accuracy(task),
                "standard_error": _known(self.error(task)),
                "questions": len(rows),
                "no_answer": sum(row.predicted is None for row in rows),
            }
            for task, rows in self.predictions.items()
        }
        mean = {"accuracy": self.mean_accuracy, "standard_error": _known(self.mean_error)}
        return {"how": self.how, "tasks": tasks, "mean": mean, "seconds": self.seconds}

    def table(self) -> PlainTable:
        """The numbers as a table in percent."""
        from pera_lightning.plain_table import PlainTable

        table = PlainTable("task", title=f"accuracy in % ({self.how})")
        for heading in ("accuracy", "standard error", "questions", "no answer"):
            table.add_column(heading, justify="right")
        for task, row in self.summary()["tasks"].items():
            numbers = (f"{100 * row['accuracy']:.1f}", _in_percent(row["standard_error"]))
            table.add_row(task, *numbers, str(row["questions"]), str(row["no_answer"]))
        table.add_section()
        mean_error = _known(self.mean_error)
        table.add_row("mean of the tasks", f"{100 * self.mean_accuracy:.1f}", _in_percent(mean_error), "", "")
        return table

    def write(self, folder: str | Path, about: Mapping[str, Any] | None = None, *, overwrite: bool = False) -> None:
        """Writes `results.json` and one `<task>.jsonl` of predictions for each task, all of them or none.

        Those of an earlier evaluation there are replaced as a whole; other files stay.

        Args:
            folder: New, empty, or with an earlier evaluation.
            about: Further entries of `results.json`, such as the adapter's name.
            overwrite: Whether the folder may be another one: files of the same names are then replaced.

        Raises:
            FolderError: The folder is somebody else's, or cannot be written to; it is as it was.
        """
        rows = {
            task: [{**dataclasses.asdict(row), "correct": row.correct} for row in found]
            for task, found in self.predictions.items()
        }
        write_results(folder, {**(about or {}), **self.summary()}, rows, overwrite=overwrite)


def write_results(
    folder: str | Path, results: Mapping[str, Any], rows: Mapping[str, Sequence[Mapping[str, Any]]], *, overwrite: bool
) -> None:
    """Writes `results.json` and one file of rows for each task; see `Evaluation.write`.

    Args:
        folder: New, empty, or with an earlier evaluation.
        results: What `results.json` holds.
        rows: Task -> a row for each question.
        overwrite: Whether the folder may be another one.
    """
    with whole_folder(local_path(folder, "folder"), RESULTS, overwrite=overwrite) as new:
        for task, found in rows.items():
            # What lm-eval keeps of a question may be anything.
            lines = (json.dumps(row, default=str) + "\n" for row in found)
            (new / rows_file(task)).write_text("".join(lines), encoding="utf-8")
        (new / RESULTS_FILE).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def rows_file(task: str) -> str:
    """Name of the file of a task's rows; a task of somebody's own may be called anything."""
    return re.sub(r"[^\w.-]|^\.", "_", task) + ".jsonl"


def _known(error: float) -> float | None:
    # JSON has no nan.
    return None if math.isnan(error) else error


def _in_percent(error: float | None) -> str:
    return "unknown" if error is None else f"{100 * error:.1f}"
