"""What an evaluation found: predictions, accuracies with their errors, a table and files."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pera_lightning.checkpoint.atomic import replacing
from pera_lightning.checkpoint.remote import local_path
from pera_lightning.integration.data.commonsense import CommonsenseTask

if TYPE_CHECKING:
    from pera_lightning.analysis.plain_table import PlainTable


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
        return _mean(prediction.correct for prediction in self.predictions[task])

    def error(self, task: str) -> float:
        """Standard error of the accuracy: `sqrt(p (1 - p) / n)`."""
        return math.sqrt(self.accuracy(task) * (1 - self.accuracy(task)) / len(self.predictions[task]))

    @property
    def mean_accuracy(self) -> float:
        """Mean of the tasks' accuracies, each task counted once."""
        return _mean(map(self.accuracy, self.predictions))

    @property
    def mean_error(self) -> float:
        """Standard error of the mean accuracy, tasks taken as independent."""
        return math.hypot(*map(self.error, self.predictions)) / len(self.predictions)

    def summary(self) -> dict[str, Any]:
        """The numbers, as `results.json` holds them."""
        tasks = {
            task: {
                "accuracy": self.accuracy(task),
                "standard_error": self.error(task),
                "questions": len(rows),
                "no_answer": sum(row.predicted is None for row in rows),
            }
            for task, rows in self.predictions.items()
        }
        mean = {"accuracy": self.mean_accuracy, "standard_error": self.mean_error}
        return {"how": self.how, "tasks": tasks, "mean": mean, "seconds": self.seconds}

    def table(self) -> PlainTable:
        """The numbers as a table in percent."""
        from pera_lightning.analysis.plain_table import PlainTable

        table = PlainTable("task", title=f"accuracy in % ({self.how})")
        for heading in ("accuracy", "standard error", "questions", "no answer"):
            table.add_column(heading, justify="right")
        for task, row in self.summary()["tasks"].items():
            numbers = (f"{100 * row['accuracy']:.1f}", f"{100 * row['standard_error']:.1f}")
            table.add_row(task, *numbers, str(row["questions"]), str(row["no_answer"]))
        table.add_section()
        table.add_row("mean of the tasks", f"{100 * self.mean_accuracy:.1f}", f"{100 * self.mean_error:.1f}", "", "")
        return table

    def write(self, folder: str | Path, about: Mapping[str, Any] | None = None) -> None:
        """Writes `results.json` and one `<task>.jsonl` of predictions for each task, each file whole or not at all.

        Files of tasks that an earlier evaluation wrote there, and that are not among these, are deleted.

        Args:
            folder: Made if it is not there.
            about: Further entries of `results.json`, such as the adapter's name.
        """
        folder = local_path(folder, "folder")
        folder.mkdir(parents=True, exist_ok=True)
        for task in get_args(CommonsenseTask):
            if task not in self.predictions:
                (folder / f"{task}.jsonl").unlink(missing_ok=True)
        for task, rows in self.predictions.items():
            lines = (json.dumps({**dataclasses.asdict(row), "correct": row.correct}) + "\n" for row in rows)
            _write(folder / f"{task}.jsonl", "".join(lines))
        _write(folder / "results.json", json.dumps({**(about or {}), **self.summary()}, indent=2) + "\n")


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)
