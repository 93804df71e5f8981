"""Learning-rate curves of methods, and how far each is from the reference method."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pera_lightning.analysis.method_comparison import ComparedRun, MethodSummary
from pera_lightning.analysis.plots.figure import new_figure


def plot_methods(
    runs: Sequence[ComparedRun], summaries: Sequence[MethodSummary], selection: str, report: str
) -> Figure:
    """Left the selection metric against the learning rate, right the paired differences of the reported metric.

    Left: a dot for each run, a line through the means of the seeds that tried every learning rate, a ring around the
    chosen one, crosses at the lower edge for runs that diverged. Right: a dot for each seed, a diamond for the mean, a
    bar for its 95 % interval.

    Args:
        runs: All runs.
        summaries: The methods, the reference first.
        selection: Name of the selection metric.
        report: Name of the reported metric.
    """
    figure = new_figure(11.0, 1.6 + max(2.4, 0.45 * len(summaries)))
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    figure.suptitle("Methods at equal data and seeds")
    draw_learning_rates(left, runs, summaries, selection, [f"C{number}" for number in range(len(summaries))])
    left.legend(fontsize="small")
    _draw_differences(right, summaries, report)
    return figure


def draw_learning_rates(
    axes: Axes,
    runs: Sequence[ComparedRun],
    summaries: Sequence[MethodSummary],
    selection: str,
    colours: Sequence[str],
) -> None:
    """The left half of `plot_methods`, without a legend, in a colour for each method."""
    # Dashes, because methods that do the same lie on each other.
    for summary, colour, line in zip(summaries, colours, itertools.cycle(("-", "--", ":", "-.")), strict=False):
        _draw_curve(axes, [run for run in runs if run.method == summary.method], summary, colour, line)
    axes.plot([], [], "o", color="grey", fillstyle="none", markersize=9, label="chosen")
    rates = sorted({run.learning_rate for run in runs})
    axes.set_xscale("log")
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates], rotation=30 if len(rates) > 3 else 0)
    axes.minorticks_off()
    axes.set_xlabel("learning rate")
    axes.set_ylabel(selection)
    _widen(axes.get_ylim, axes.set_ylim, summaries[0].mean)
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.grid(alpha=0.3)


def _draw_curve(axes: Axes, runs: Sequence[ComparedRun], summary: MethodSummary, colour: str, line: str) -> None:
    finished = [(run.learning_rate, run.selection) for run in runs if run.selection is not None]
    tried = tuned_curve(runs)
    rates, means = list(tried), list(tried.values())
    axes.plot(rates, means, line, color=colour, label=summary.method, linewidth=1.6)
    axes.plot([rate for rate, _ in finished], [value for _, value in finished], ".", color=colour, alpha=0.5)
    diverged = [run.learning_rate for run in runs if run.diverged]
    if diverged:
        # In the axes' own height: a diverged run has no value.
        height = [0.02] * len(diverged)
        label = f"{summary.method}, diverged"
        axes.plot(diverged, height, "x", color=colour, transform=axes.get_xaxis_transform(), label=label)
    if summary.learning_rate in rates:
        best = means[rates.index(summary.learning_rate)]
        axes.plot([summary.learning_rate], [best], "o", color=colour, fillstyle="none", markersize=9)


def tuned_curve(runs: Sequence[ComparedRun]) -> dict[float, float]:
    """Learning rate -> mean selection metric of one method's runs, over the seeds that tried every learning rate.

    Means over other seeds at one learning rate than at the next would show how seeds differ. Learning rates at which
    one of these seeds diverged are left out.
    """
    scores: dict[float, dict[int, float]] = {}
    for run in runs:
        scores.setdefault(run.learning_rate, {})[run.seed] = math.nan if run.selection is None else run.selection
    seeds = set.intersection(*map(set, scores.values())) if scores else set()
    means = {rate: math.fsum(scores[rate][seed] for seed in seeds) / len(seeds) for rate in sorted(scores) if seeds}
    return {rate: mean for rate, mean in means.items() if not math.isnan(mean)}


def _draw_differences(axes: Axes, summaries: Sequence[MethodSummary], report: str) -> None:
    reference, others = summaries[0], summaries[1:]
    axes.axvline(0, color="black", linewidth=0.8)
    for place, summary in enumerate(others):
        colour = f"C{place + 1}"
        found = list(summary.differences.values())
        axes.plot(found, [place + 0.18] * len(found), ".", color=colour, alpha=0.6)
        if summary.interval is not None:
            axes.plot(summary.interval, [place, place], color=colour, linewidth=3, solid_capstyle="butt")
        if found:
            axes.plot([summary.difference], [place], "d", color=colour)
    axes.set_yticks(range(len(others)), [summary.method for summary in others])
    axes.set_ylim(max(1, len(others)) - 0.5, -0.5)
    _widen(axes.get_xlim, axes.set_xlim, reference.mean)
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel(f"{report}, difference from {reference.method}")
    axes.set_title("seeds, their mean and its 95 % interval", fontsize="medium")
    axes.grid(alpha=0.3, axis="x")


def _widen(get: Callable[[], tuple[float, float]], put: Callable[[float, float], object], reference: float) -> None:
    """Show no less than 1 % of the reference: methods that differ by rounding should look equal."""
    low, high = get()
    missing = 0.01 * abs(reference) - (high - low)
    if missing > 0:
        put(low - missing / 2, high + missing / 2)
