"""The pictures of `docs/RESULTS.md`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.quality.approximation import Approximation
from benchmarks.quality.form_studies import PRODUCT_FORMS
from benchmarks.quality.studies import FORMS, IDEAS, Study
from pera_lightning.analysis.method_comparison import ComparedRun, MethodSummary, summarise
from pera_lightning.analysis.plots.figure import new_figure
from pera_lightning.analysis.plots.methods import draw_learning_rates

_PALETTE = *(f"C{number}" for number in range(10)), "black", "gold", "navy", "lime", "teal", "maroon"
_COLOURS = dict(zip({**FORMS, **IDEAS, **PRODUCT_FORMS}, _PALETTE, strict=True))

_COLOURS |= {"peft_lora": "grey", "rslora": "olive", "dora": "crimson", "hira": "darkviolet"}


@dataclass(frozen=True)
class Results:
    """A study and its runs."""

    study: Study
    runs: Sequence[ComparedRun]

    @property
    def summaries(self) -> list[MethodSummary]:
        """The methods at their best learning rates, LoRA first."""
        return summarise(self.runs, self.study.seeds[: self.study.tuning_seeds], self.study.mode)


def plot_overview(results: Sequence[Results]) -> Figure:
    """How far every method's test loss is from LoRA's, a line for each study."""
    figure = new_figure(8.5, 1.6 + 0.45 * len(results))
    axes = figure.subplots()
    for place, found in enumerate(results):
        lora, *others = found.summaries
        for number, summary in enumerate(others):
            height = place + 0.2 * (number - (len(others) - 1) / 2)
            draw_difference(axes, summary, 100 / lora.mean, height)
    for method in list(FORMS)[1:]:
        axes.plot([], [], "d-", color=_COLOURS[method], label=method)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(results)), [f"{title(found.study)}, r = {found.study.rank}" for found in results])
    axes.set_ylim(len(results) - 0.5, -0.5)
    axes.set_xlabel("difference of the test loss from LoRA's, in % of LoRA's (left is better)")
    axes.set_title("Each method at its own best learning rate: mean and 95 % interval over seeds", fontsize="medium")
    axes.grid(alpha=0.3, axis="x")
    figure.legend(loc="outside lower center", ncols=len(FORMS), fontsize="small")
    return figure


def title(study: Study) -> str:
    """What the studies of a group share, in words."""
    return f"{study.task}, {'upper' if study.group.endswith('_upper') else 'all'} layers"


def draw_difference(axes: Axes, summary: MethodSummary, scale: float, height: float) -> None:
    """Dots for the seeds, a diamond for their mean and a bar for its interval.

    Args:
        axes: Where they go.
        summary: Of the method.
        scale: Factor on the differences.
        height: Where on the y axis.
    """
    colour = _COLOURS[summary.method]
    found = [scale * value for value in summary.differences.values()]
    if not found:
        return
    axes.plot(found, [height] * len(found), ".", color=colour, alpha=0.4)
    axes.plot([scale * summary.difference], [height], "d", color=colour)
    if summary.interval is not None:
        axes.plot([scale * end for end in summary.interval], [height, height], color=colour, linewidth=2)


def plot_ranks(groups: Sequence[Sequence[Results]]) -> Figure:
    """What a rank can fit, and what is left of it in the test, against the rank; a column for each group of studies.

    Above the lowest training loss of all learning rates, with the seeds that tried them all; below the test loss at the
    learning rate that validation chose.
    """
    figure = new_figure(3.2 * len(groups), 5.6)
    rows = figure.subplots(2, len(groups), squeeze=False)
    for column, group in enumerate(groups):
        rows[0][column].set_title(group[0].study.task)
        for axes, name in ((rows[0][column], "lowest training loss"), (rows[1][column], "test loss")):
            _draw_ranks(axes, group, is_test=name == "test loss")
            axes.set_ylabel(name if column == 0 else "")
            axes.set_xlabel("rank" if name == "test loss" else "")
    lines = {label: line for axes in rows[0] for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=len(lines), fontsize="small")
    return figure


def _draw_ranks(axes: Axes, group: Sequence[Results], *, is_test: bool) -> None:
    ranks = [found.study.rank for found in group]
    for number, method in enumerate(group[0].study.methods):
        values = [_losses(found, method, is_test=is_test) for found in group]
        means = [sum(losses) / len(losses) for losses in values]
        # Beside each other: methods often have the same values.
        places = [rank * 1.06 ** (number - 1) for rank in ranks]
        axes.plot(places, means, "o-", color=_COLOURS[method], label=method, markersize=4)
        axes.vlines(places, [min(losses) for losses in values], [max(losses) for losses in values], _COLOURS[method])
    axes.set_xscale("log", base=2)
    axes.set_xticks(ranks, [str(rank) for rank in ranks])
    axes.grid(alpha=0.3)


def _losses(found: Results, method: str, *, is_test: bool) -> list[float]:
    """Of seeds: in the test at the method's best learning rate, in training at the one with the lowest loss."""
    if is_test:
        [summary] = [summary for summary in found.summaries if summary.method == method]
        return list(summary.reports.values())
    lowest = []
    for seed in found.study.seeds[: found.study.tuning_seeds]:
        runs = [run for run in found.runs if (run.method, run.seed) == (method, seed)]
        lowest.append(min((run.train_loss for run in runs if run.train_loss is not None), default=math.nan))
    return lowest


def plot_worth(found: Sequence[Approximation]) -> Figure:
    """The rank of LoRA that comes as near to a weight change, against the rank of PERA."""
    figure = new_figure(6.5, 5.6)
    axes = figure.subplots()
    ranks = sorted({row.rank for row in found})
    for number, target in enumerate(dict.fromkeys(row.target for row in found)):
        for terms, line in (("full", "o-"), ("square", "s:")):
            rows = [row for row in found if (row.target, row.terms) == (target, terms)]
            worth = [row.worth for row in rows]
            label = f"{target}, {terms} terms"
            axes.plot([row.rank for row in rows], worth, line, color=f"C{number}", markersize=4, label=label)
    axes.plot(ranks, ranks, color="black", linewidth=0.8, label="LoRA itself")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(ranks, [str(rank) for rank in ranks])
    axes.set_yticks([*ranks, 12], [str(rank) for rank in (*ranks, 12)])
    axes.set_xlabel("rank of PERA")
    axes.set_ylabel("rank of LoRA that comes as near")
    axes.set_title("How near a weight change an adapter comes at best", fontsize="medium")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    return figure


def plot_learning_rates(group: Sequence[Results]) -> Figure:
    """The selection metric against the learning rate, a panel for each rank."""
    figure = new_figure(max(5.0, 3.4 * len(group)), 3.6)
    panels = figure.subplots(1, len(group), squeeze=False)[0]
    figure.suptitle(title(group[0].study))
    for axes, found in zip(panels, group, strict=True):
        colours = [_COLOURS[method] for method in found.study.methods]
        draw_learning_rates(axes, found.runs, found.summaries, f"validation {found.study.metric}", colours)
        is_cut = _cut(axes, [run.selection for run in found.runs if run.selection is not None])
        axes.set_title(f"rank {found.study.rank}{', higher losses cut off' if is_cut else ''}", fontsize="medium")
        if axes is not panels[0]:
            axes.set_ylabel("")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), fontsize="small")
    return figure


def _cut(axes: Axes, losses: Sequence[float]) -> bool:
    """Whether some were so high that all others would have been one line; they are outside of the picture then."""
    low, usual = min(losses), statistics.median(losses)
    high = low + 5 * (usual - low)
    if max(losses) <= 2 * high - low:
        return False
    axes.set_ylim(low - (usual - low) / 2, high)
    return True
