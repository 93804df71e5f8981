"""Tasks of lm-evaluation-harness, put to a model, and what came of them."""

from __future__ import annotations

import math
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pera_lightning.data.option_errors import check_at_least_one
from pera_lightning.evaluation.harness import lm_eval_model
from pera_lightning.evaluation.harness_tasks import HarnessTasks
from pera_lightning.evaluation.results import write_results

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pera_lightning.plain_table import PlainTable

_ACCURACY = re.compile(r"acc|exact_match")


@dataclass(frozen=True)
class Metric:
    """A number that lm-eval computes of a task.

    Args:
        name: Of the metric, with the filter of the answers where a task has several.
        value: As lm-eval gives it: accuracies from 0 to 1.
        standard_error: None where lm-eval knows none.
    """

    name: str
    value: float
    standard_error: float | None


@dataclass(frozen=True)
class HarnessEvaluation:
    """What lm-eval found.

    Args:
        version: Of lm-eval.
        metrics: Task or group -> its metrics, the first one being the one that lm-eval names first.
        questions: Task -> how many questions were asked.
        shots: Task -> how many examples stood before each question.
        samples: Task -> a row for each question, as lm-eval logs it.
        seconds: Time that it took.
    """

    version: str
    metrics: Mapping[str, Sequence[Metric]]
    questions: Mapping[str, int]
    shots: Mapping[str, int]
    samples: Mapping[str, Sequence[Mapping[str, Any]]]
    seconds: float

    def accuracy(self, task: str) -> Metric | None:
        """The first of the task's metrics that is an accuracy or the share of exact answers; None if none is."""
        return next((metric for metric in self.metrics[task] if _ACCURACY.match(metric.name)), None)

    def summary(self) -> dict[str, Any]:
        """The numbers, as `results.json` holds them: those of `Evaluation.summary`, and all metrics."""
        tasks = {task: self._summary_of(task) for task in self.questions}
        known = [metric for task in self.questions if (metric := self.accuracy(task)) is not None]
        errors = [metric.standard_error for metric in known]
        mean = {
            "accuracy": statistics.fmean(metric.value for metric in known) if known else None,
            "standard_error": None if None in errors or not known else math.hypot(*errors) / len(known),  # type: ignore[arg-type]
        }
        groups = {name: self._metrics_of(name) for name in self.metrics if name not in self.questions}
        how = f"lm-eval {self.version}"
        return {"how": how, "tasks": tasks, "groups": groups, "mean": mean, "seconds": self.seconds}

    def _summary_of(self, task: str) -> dict[str, Any]:
        accuracy = self.accuracy(task)
        return {
            "accuracy": None if accuracy is None else accuracy.value,
            "standard_error": None if accuracy is None else accuracy.standard_error,
            "questions": self.questions[task],
            "shots": self.shots.get(task),
            "metrics": self._metrics_of(task),
        }

    def _metrics_of(self, task: str) -> dict[str, Any]:
        return {m.name: {"value": m.value, "standard_error": m.standard_error} for m in self.metrics[task]}

    def table(self) -> PlainTable:
        """A row for each metric, with numbers as lm-eval gives them."""
        from pera_lightning.plain_table import PlainTable

        table = PlainTable("task", "metric", title=f"lm-evaluation-harness {self.version}")
        for heading in ("value", "standard error", "questions", "shots"):
            table.add_column(heading, justify="right")
        for task, metrics in self.metrics.items():
            counts = [str(counted.get(task, "")) for counted in (self.questions, self.shots)]
            for index, metric in enumerate(metrics):
                error = _shown(metric.standard_error)
                cells = ("", "") if index else counts
                table.add_row("" if index else task, metric.name, f"{metric.value:.4f}", error, *cells)
        if len(self.questions) > 1 and (mean := self.summary()["mean"])["accuracy"] is not None:
            table.add_section()
            error = _shown(mean["standard_error"])
            table.add_row("mean of the tasks", "first accuracy", f"{mean['accuracy']:.4f}", error)
        return table

    def write(self, folder: str | Path, about: Mapping[str, Any] | None = None, *, overwrite: bool = False) -> None:
        """Writes `results.json` and one file of lm-eval's samples for each task; see `Evaluation.write`."""
        write_results(folder, {**(about or {}), **self.summary()}, self.samples, overwrite=overwrite)


def _shown(error: float | None) -> str:
    return "unknown" if error is None else f"{error:.4f}"


def evaluate_harness(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: HarnessTasks,
    *,
    limit: int | None = None,
    batch_size: int = 16,
    use_chat_template: bool = False,
    system_prompt: str | None = None,
) -> HarnessEvaluation:
    """Put tasks of lm-evaluation-harness to a model, adapted, merged or plain.

    Code that a model's or a data set's repository brings along is not run.

    Args:
        model: A causal language model on its device. It is put in eval mode, and stays in it.
        tokenizer: Its tokenizer.
        tasks: The tasks, with their own numbers of examples (shots).
        limit: Most questions of a task.
        batch_size: Requests at a time.
        use_chat_template: Whether prompts are written by the tokenizer's chat template; lm-eval's own default is not.
        system_prompt: System message.

    Raises:
        ConfigError: An option has a value it cannot have.
    """
    for name, value in {"limit": limit, "batch_size": batch_size}.items():
        check_at_least_one(name, value)
    from lm_eval import simple_evaluate

    start = time.perf_counter()
    found = simple_evaluate(
        lm_eval_model(model, tokenizer, batch_size=batch_size),
        tasks=tasks.specs,
        task_manager=tasks.manager,
        limit=limit,
        apply_chat_template=use_chat_template,
        system_instruction=system_prompt,
    )
    assert found is not None, "lm-eval gives results in the first process"
    names = [*found["results"], *(name for name in found.get("groups", {}) if name not in found["results"])]
    every = {**found.get("groups", {}), **found["results"]}
    return HarnessEvaluation(
        found["lm_eval_version"],
        {name: metrics for name in names if (metrics := _metrics(every[name]))},
        {task: counts["effective"] for task, counts in found["n-samples"].items()},
        dict(found["n-shot"]),
        found["samples"],
        time.perf_counter() - start,
    )


def _metrics(values: Mapping[str, Any]) -> list[Metric]:
    """Out of lm-eval's "acc,none" and "acc_stderr,none"."""
    found = []
    for key, value in values.items():
        name, comma, filtered = key.partition(",")
        if not comma or name.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = values.get(f"{name}_stderr,{filtered}")
        known = float(error) if isinstance(error, int | float) and math.isfinite(error) else None
        found.append(Metric(name if filtered == "none" else f"{name} ({filtered})", float(value), known))
    return found
