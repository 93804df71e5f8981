"""The studies' results as `docs/RESULTS.md` and pictures."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from benchmarks.quality.studies import STUDIES, Study
from pera_lightning.analysis.method_comparison import ComparedRun, MethodSummary, summarise
from pera_lightning.analysis.method_table import read_runs
from pera_lightning.analysis.plots.figure import new_figure, save_figure
from pera_lightning.analysis.plots.method_comparison import plot_methods

RESULTS = Path("benchmarks/results/quality")
FINDINGS = Path(__file__).with_name("findings.md")
INTRODUCTION = """# Does the polynomial help?

{findings}
## How it was measured

Every row is made by `python -m benchmarks.quality run STUDY --data FOLDER` (the STUDY stands at its table; FOLDER holds
`glue/CoLA/train.tsv` and so on, and `commonsense/`), which calls `python -m pera_lightning compare`. Methods of a study
share the rank, the rows and their order, the number of steps and every random start of the same seed. Each tries the
same learning rates with the first {tuning} seeds, and is reported at its own best with all seeds. The learning rate is
chosen by the loss on one half of GLUE's validation set; the other half is reported and seen once. *Difference* is the
mean over seeds of the difference from LoRA with the same seed, with its 95 % bootstrap interval over seeds: it knows
how seeds differ, not how other test rows would, and with two or three seeds it is too narrow. `!` marks a best learning
rate at an end of the grid. *Energy* is the norm of the polynomial part of dW over that of the linear part, mean over
layers. Step times are not here: runs shared a machine; docs/cost.md has them.

Methods: `lora` (order 1); `full`, the paper's form; `normalised`: before every step h is scaled by
1 / (RMS(A) RMS(B)), with which products are as large as the factors' own entries all along (docs/RESEARCH.md);
`normalised_h10`: the same with ten times the learning rate for h.

`python -m benchmarks.quality check --data FOLDER` makes three of the runs again and compares; the runs of all studies
are in `benchmarks/results/quality/`.

![Difference of the test loss from LoRA's](results_overview.png)
"""


def write_page(folder: Path) -> list[Path]:
    """RESULTS.md and its pictures, of the studies that have results; returns what was written."""
    done = [study for study in STUDIES.values() if (RESULTS / f"{study.name}.csv").is_file()]
    written = [folder / "RESULTS.md", folder / "results_overview.png"]
    parts = [INTRODUCTION.format(findings=FINDINGS.read_text(encoding="utf-8"), tuning=done[0].tuning_seeds)]
    for study in done:
        runs = read_runs(RESULTS / f"{study.name}.csv")
        picture = folder / f"results_{study.name}.png"
        title = f"{study.task}, rank {study.rank}"
        names = f"val_{study.metric}", f"test_{study.metric}"
        save_figure(plot_methods(runs, _summaries(study, runs), *names, title), picture)
        written.append(picture)
        parts.append(_section(study, runs, picture.name))
    _draw_overview(done, written[1])
    written[0].write_text("\n".join(parts), encoding="utf-8")
    return written


def _summaries(study: Study, runs: Sequence[ComparedRun]) -> list[MethodSummary]:
    return summarise(runs, study.seeds[: study.tuning_seeds], study.mode)


def _also(study: Study, runs: Sequence[ComparedRun]) -> list[MethodSummary]:
    """The summaries of the study's other metric, at the learning rates that its first one chose."""
    name = f"test_{study.also}"
    replaced = [dataclasses.replace(run, report=run.metrics.get(name)) for run in runs]
    return _summaries(study, replaced)


def _section(study: Study, runs: Sequence[ComparedRun], picture: str) -> str:
    made = json.loads((RESULTS / f"{study.name}.json").read_text(encoding="utf-8"))
    heading = (
        f"## {study.task}, rank {study.rank}\n\n`{study.name}`: {study.about} {made['date']}: {made['machine']}.\n"
    )
    columns = [
        *("method", "learning rate", f"test {study.metric}", "difference"),
        *(f"test {study.also}", "difference", "train loss", "energy", "trained", "diverged"),
    ]
    lines = [columns, ["---"] * len(columns)]
    for loss, other in zip(_summaries(study, runs), _also(study, runs), strict=True):
        own = [run for run in runs if run.method == loss.method]
        lines.append(_row(loss, other, own, is_reference=len(lines) == 2))
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"{heading}\n{table}\n\n![Learning rates and differences]({picture})\n"


def _row(loss: MethodSummary, other: MethodSummary, runs: Sequence[ComparedRun], is_reference: bool) -> list[str]:
    chosen = [run.train_loss for run in runs if run.learning_rate == loss.learning_rate and run.train_loss is not None]
    return [
        loss.method,
        "all diverged" if loss.learning_rate is None else f"{loss.learning_rate:g}{'!' * loss.at_edge}",
        *(_mean(loss), _difference(loss, is_reference)),
        *(_mean(other), _difference(other, is_reference)),
        f"{sum(chosen) / len(chosen):.4f}" if chosen else "-",
        f"{loss.energy:.2g}",
        f"{loss.trainable:,}",
        f"{loss.diverged} of {loss.runs}",
    ]


def _mean(summary: MethodSummary) -> str:
    spread = "" if math.isnan(summary.spread) else f" ± {summary.spread:.4f}"
    return f"{summary.mean:.4f}{spread}"


def _difference(summary: MethodSummary, is_reference: bool) -> str:
    if is_reference or not summary.differences:
        return "-"
    interval = "" if summary.interval is None else f" [{summary.interval[0]:+.4f}, {summary.interval[1]:+.4f}]"
    return f"{summary.difference:+.4f}{interval}"


def _draw_overview(studies: Sequence[Study], path: Path) -> None:
    figure = new_figure(8.5, 1.5 + 0.75 * len(studies))
    axes = figure.subplots()
    methods: list[str] = []
    for place, study in enumerate(studies):
        lora, *others = _summaries(study, read_runs(RESULTS / f"{study.name}.csv"))
        for number, summary in enumerate(others):
            if summary.method not in methods:
                methods.append(summary.method)
            height = place + 0.2 * (number - (len(others) - 1) / 2)
            _draw_difference(axes, summary, 100 / lora.mean, height, f"C{1 + methods.index(summary.method)}")
    for number, method in enumerate(methods):
        axes.plot([], [], "d-", color=f"C{1 + number}", label=method)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(studies)), [f"{study.task}, r = {study.rank}" for study in studies])
    axes.set_ylim(len(studies) - 0.5, -0.5)
    axes.set_xlabel("difference of the test loss from LoRA's, in % of LoRA's (left is better)")
    axes.set_title("Each method at its own best learning rate: mean and 95 % interval over seeds", fontsize="medium")
    axes.grid(alpha=0.3, axis="x")
    axes.legend(fontsize="small")
    save_figure(figure, path)


def _draw_difference(axes: Axes, summary: MethodSummary, scale: float, height: float, colour: str) -> None:
    found = [scale * value for value in summary.differences.values()]
    if not found:
        return
    axes.plot(found, [height] * len(found), ".", color=colour, alpha=0.4)
    axes.plot([scale * summary.difference], [height], "d", color=colour)
    if summary.interval is not None:
        axes.plot([scale * end for end in summary.interval], [height, height], color=colour, linewidth=2)
