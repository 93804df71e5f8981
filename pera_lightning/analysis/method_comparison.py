"""Methods side by side, each at its own best learning rate, from the results of single runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pera_lightning.export.lora.plain_lora import NO_LOSS


@dataclass(frozen=True)
class ComparedRun:
    """One training of a comparison and what it measured.

    Attributes:
        method: Name of the method.
        learning_rate: Its learning rate.
        seed: Decides the order of the data and every random start; the same for all methods of a pair.
        selection: The metric on the data to select by (validation); None where training diverged.
        report: The metric on the data to report (test); None where training diverged.
        metrics: All metrics of validation and test by the names they were logged under.
        train_loss: Mean loss of the last tenth of the steps; None where training diverged at once.
        energy: Norm of the polynomial part of dW over that of the linear one in the tested weights, mean over layers; 0
            where training diverged.
        trainable: Number of trained parameters.
        steps: Optimizer steps made.
        step_ms: Median milliseconds of an optimizer step.
        reason: Why it diverged; empty where it did not.
        peak_mb: Most memory in training in megabytes: of tensors on a GPU, of the whole process on a CPU; NaN where it
            was not measured.
        disk_mb: Megabytes of the saved adapter's tensors; NaN where it was not measured.
        minutes: How long the run took, with loading, validation and test; NaN where it was not measured.
    """

    method: str
    learning_rate: float
    seed: int
    selection: float | None
    report: float | None
    metrics: dict[str, float]
    train_loss: float | None
    energy: float
    trainable: int
    steps: int
    step_ms: float
    reason: str = ""
    peak_mb: float = math.nan
    disk_mb: float = math.nan
    minutes: float = math.nan

    @property
    def diverged(self) -> bool:
        """Whether the loss or a metric was not finite."""
        return self.selection is None or self.report is None

    def to_dict(self) -> dict[str, Any]:
        """The run as plain types, fit for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class MethodSummary:
    """What a comparison says about one method.

    Attributes:
        method: Its name.
        learning_rate: The best one by the mean selection metric over the tuning seeds; None where all diverged.
        at_edge: Whether that is the smallest or largest that was tried, so that a better one may lie beyond.
        reports: Seed -> reported metric, at that learning rate.
        differences: Seed -> difference of the reported metric from the reference method's, for seeds of both.
        interval: 95 % interval of the mean difference over seeds (Student's t); None with fewer than two seeds.
        energy: Mean over those runs that did not diverge.
        trainable: Number of trained parameters.
        step_ms: Median over those runs.
        peak_mb: Most over those runs; NaN where it was not measured.
        disk_mb: Median over those runs; NaN where it was not measured.
        diverged: Runs of this method that diverged, at any learning rate.
        runs: Runs of this method.
    """

    method: str
    learning_rate: float | None
    at_edge: bool
    reports: dict[int, float]
    differences: dict[int, float]
    interval: tuple[float, float] | None
    energy: float
    trainable: int
    step_ms: float
    peak_mb: float
    disk_mb: float
    diverged: int
    runs: int

    @property
    def mean(self) -> float:
        """Mean of the reported metric over seeds; NaN where all runs diverged."""
        return statistics.fmean(self.reports.values()) if self.reports else math.nan

    @property
    def spread(self) -> float:
        """Standard deviation of the reported metric over seeds; NaN for fewer than two."""
        return statistics.stdev(self.reports.values()) if len(self.reports) > 1 else math.nan

    @property
    def difference(self) -> float:
        """Mean paired difference from the reference method; NaN without a common seed."""
        return statistics.fmean(self.differences.values()) if self.differences else math.nan


def is_identical_to_lora(summary: MethodSummary) -> bool:
    """Whether a method has polynomial terms that took no part: less of dW than rounding changes."""
    return 0 < summary.energy < NO_LOSS


def verdict(summaries: Sequence[MethodSummary], mode: Literal["min", "max"]) -> str:
    """Which methods can be told from the reference, in a sentence: those whose interval leaves 0 out.

    Args:
        summaries: The methods, the reference first.
        mode: Whether less or more of the metric is better.
    """
    reference, others = summaries[0], summaries[1:]
    if not others:
        return "One method alone: nothing is compared."
    if not any(summary.interval for summary in others):
        return f"With fewer than two common seeds nothing can be told from {reference.method}."
    sign = 1 if mode == "max" else -1
    ends = {summary.method: [sign * end for end in summary.interval] for summary in others if summary.interval}
    sides = {
        "better": [method for method, found in ends.items() if min(found) > 0],
        "worse": [method for method, found in ends.items() if max(found) < 0],
    }
    told = [f"{side}: {', '.join(found)}" for side, found in sides.items() if found]
    if told:
        rest = "" if sum(map(len, sides.values())) == len(others) else "; not the others"
        return f"Can be told from {reference.method}: {'; '.join(told)}{rest}."
    return f"No method can be told from {reference.method} by {len(reference.reports)} seeds."


def best_learning_rate(
    runs: Iterable[ComparedRun], method: str, tuning_seeds: Sequence[int], mode: Literal["min", "max"]
) -> float | None:
    """The learning rate with the best mean selection metric over the tuning seeds.

    A learning rate at which one of them diverged, or is missing, is not chosen.
    """
    scores: dict[float, list[float]] = {}
    for run in runs:
        if run.method == method and run.seed in tuning_seeds:
            scores.setdefault(run.learning_rate, []).append(math.nan if run.selection is None else run.selection)
    sign = 1 if mode == "max" else -1
    means = {
        rate: sign * statistics.fmean(found)
        for rate, found in scores.items()
        if len(found) == len(tuning_seeds) and not any(map(math.isnan, found))
    }
    # Of equals the smaller one: further from diverging.
    return min(means, key=lambda rate: (-means[rate], rate)) if means else None


def summarise(
    runs: Sequence[ComparedRun], tuning_seeds: Sequence[int], mode: Literal["min", "max"]
) -> list[MethodSummary]:
    """A summary for each method, in the order of their first runs; the first method is the reference."""
    methods = list(dict.fromkeys(run.method for run in runs))
    chosen = {method: _chosen_runs(runs, method, tuning_seeds, mode) for method in methods}
    reference = {run.seed: run.report for run in chosen[methods[0]] if run.report is not None} if methods else {}
    return [_summary(method, runs, chosen[method], reference) for method in methods]


def _chosen_runs(
    runs: Sequence[ComparedRun], method: str, tuning_seeds: Sequence[int], mode: Literal["min", "max"]
) -> list[ComparedRun]:
    rate = best_learning_rate(runs, method, tuning_seeds, mode)
    return [run for run in runs if run.method == method and run.learning_rate == rate]


def _summary(
    method: str, runs: Sequence[ComparedRun], chosen: list[ComparedRun], reference: dict[int, float]
) -> MethodSummary:
    own = [run for run in runs if run.method == method]
    rates = sorted({run.learning_rate for run in own})
    rate = chosen[0].learning_rate if chosen else None
    reports = {run.seed: run.report for run in chosen if run.report is not None}
    differences = {seed: value - reference[seed] for seed, value in reports.items() if seed in reference}
    return MethodSummary(
        method=method,
        learning_rate=rate,
        at_edge=len(rates) > 1 and rate in (rates[0], rates[-1]),
        reports=reports,
        differences=differences,
        interval=mean_interval(list(differences.values())),
        energy=statistics.fmean(run.energy for run in chosen if not run.diverged) if reports else math.nan,
        trainable=own[0].trainable,
        step_ms=statistics.median(run.step_ms for run in chosen or own),
        peak_mb=max(run.peak_mb for run in chosen or own),
        disk_mb=statistics.median(run.disk_mb for run in chosen or own),
        diverged=sum(run.diverged for run in own),
        runs=len(own),
    )


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of the mean of paired differences over seeds, by Student's t.

    It allows for how little few values say about their own spread: resampling three seeds (the bootstrap) gives an
    interval without 0 for a third of all comparisons of equal methods.

    Returns:
        Its ends, the same for the same values; None for fewer than two.
    """
    if len(values) < 2:
        return None
    mean = statistics.fmean(values)
    half = _t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return mean - half, mean + half


_T_QUANTILES = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.2010, 2.1788, 2.1604, 2.1448),
    *(2.1314, 2.1199, 2.1098, 2.1009, 2.0930),
)
"""97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom."""


def _t_quantile(freedom: int) -> float:
    if freedom <= len(_T_QUANTILES):
        return _T_QUANTILES[freedom - 1]
    # The first terms of its expansion around the normal one (Abramowitz and Stegun 26.7.5).
    z = statistics.NormalDist().inv_cdf(0.975)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
