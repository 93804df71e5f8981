"""The studies' results as `docs/RESULTS.md` and pictures."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.quality import approximation
from benchmarks.quality.adapters import ADAPTER_STUDIES
from benchmarks.quality.approximation import Approximation
from benchmarks.quality.every_study import STUDIES
from benchmarks.quality.first_page import first_page, plot_adapters
from benchmarks.quality.pictures import (
    Results,
    plot_learning_rates,
    plot_overview,
    plot_ranks,
    plot_worth,
    title,
)
from benchmarks.quality.studies import FORMS, SMALL_STEPS, Study
from pera_lightning.analysis.method_comparison import ComparedRun, MethodSummary, mean_interval
from pera_lightning.analysis.method_table import read_runs
from pera_lightning.analysis.plots.figure import save_figure
from pera_lightning.analysis.plots.methods import plot_methods

RESULTS = Path("benchmarks/results/quality")
SHOWN = "small_model_rank_4"
"""The study whose picture, as `compare` draws it, stands for others in the README."""
FINDINGS = Path(__file__).with_name("findings.md")
INTRODUCTION = """## Does the polynomial help?

{findings}
## How it was measured

Every row is made by `python -m benchmarks.quality run STUDY --data FOLDER` (the STUDY stands at its table; FOLDER
holds `glue/CoLA/train.tsv` and so on, `commonsense/`, `wikitext2/` and `text/`), which calls
`python -m pera_lightning compare`. Methods of a study share the rank, the rows and their order, the number of steps and
every random start of the same seed. Each tries the same learning rates, with seed 0 in the studies of upper layers
(with all seeds in that of finer learning rates) and seeds 0 and 1 in those of all layers, and is reported at its own
best with seeds 0, 1 and 2 (STS-B at rank 8: 0 to 5; the small language model: 0 to 3). The learning rate is chosen by
the loss on one half of the task's `dev.tsv` (commonsense: 400 rows held out; Shakespeare: 5 % of the text); the other
half (50 rows of each test set; the next 5 %) is reported and seen once.

*Difference* is the mean over seeds of the difference from LoRA with the same seed, with its 95 % interval by Student's
t. It knows how seeds differ, not how other test rows would, and not that a learning rate that one seed chose may be
the wrong one: a method that chose another rate than LoRA differs for that reason too. `!` marks a best learning rate at
an end of the grid (of two it always is). *Energy* is the norm of the polynomial part of dW over that of the linear
part, mean over layers. *Diverged* are runs whose loss or weights were not finite; a run that learned nothing is not.
Step times are not here: runs shared a machine; docs/cost.md has them.

The rows are samples of public files in GLUE's format, not GLUE's own splits, so that the numbers are nobody else's:
SST-2 (4,000 rows to train on, 436 in `dev.tsv`) and CoLA (4,000, 522) of their training and validation sets; STS-B
(3,200, 750) both of its training set; MRPC (3,200, 863) of its training set and its official test set; commonsense as
in LLM-Adapters, the training mix put together from eight tasks (8,000, 3,050). Other files give other numbers, and
`check` then says "not the same". Since MRPC was measured, the odd row of its validation set is in the other half.

*Upper layers*: adapters are in the upper layers only, and what the lower ones make of a row is computed once
(`benchmarks/quality/frozen_layers.py`; without their dropout), which makes the many runs possible, and leaves so few
parameters that the rank matters.

Methods: `lora` (order 1); `full`, the paper's form; `normalised`: before every step h is scaled by
1 / (RMS(A) RMS(B)), with which products are as large as the factors' own entries all along (docs/RESEARCH.md);
`normalised_h10`: the same with ten times the learning rate for h; `auto`: the option `coefficient_scale: auto`, which
is 1 / RMS(A) at the start of training; `auto_h3`: the same with three times the learning rate for h. Further forms are
explained in docs/RESEARCH.md.

`python -m benchmarks.quality check --data FOLDER` makes three of the runs again and compares; the runs of all studies
are in `benchmarks/results/quality/`.

![Difference of the test loss from LoRA's](results_overview.png)

![Losses against the rank](results_ranks.png)

## All studies together

{together}

*Better* and *worse*: the interval over seeds of the difference does not hold 0, and the mean difference is at least
0.1 % of LoRA's test loss; of comparisons of equal methods one in twenty looks so by chance. The last columns are the
mean over studies of the difference in % of LoRA's loss, with its 95 % interval: with each method at its own best
learning rate, and with both at LoRA's. Where a method's own best rate is another, only the seeds that tried all rates
count for the last column, in many studies the one that chose LoRA's rate, which favours LoRA. Studies of one task at
several ranks share rows and seeds, so that they count for less than as many tasks would.
"""
AT_BEST = """## What the products could do at best

Without data or training: how near a given weight change does an adapter of rank r come, if its factors and coefficients
may be anything? LoRA's best is known from the singular values. PERA's (order 2) is what L-BFGS found from {starts}
starts of {iterations} iterations in float64; it had not converged, so that all are bounds: PERA comes at least as near.
*Leaves*: share of the squared norm of the change that is not reached. *Worth*: the rank of LoRA that leaves as little,
between two ranks by a straight line. *Energy*: norm of the polynomial part over that of the linear one. Targets: one
random matrix of each width, and what training all weights of the small language model below ({steps} steps of 32
blocks, learning rate 4e-3) changes in the seven linear layers of its middle layer (means over them, of *worth* too).
`python -m benchmarks.quality approximate --data FOLDER`; {made}.

{table}

![How near a weight change an adapter comes at best](results_at_best.png)
"""


def write_page(folder: Path) -> list[Path]:
    """RESULTS.md and its pictures, of the studies that have results; returns what was written."""
    done = kept_results()
    groups = [list(found) for _, found in itertools.groupby(done, key=lambda found: found.study.group)]
    compared = [found for found in _counted(done) if found.study.methods.keys() <= FORMS.keys()]
    figures = {"overview": plot_overview(compared), "ranks": plot_ranks([group for group in groups if len(group) > 1])}
    at_best = approximation.kept()
    figures["at_best"] = plot_worth(at_best)
    [shown] = [found for found in done if found.study.name == SHOWN]
    figures["compare"] = plot_methods(shown.runs, shown.summaries, "val_loss", "test_loss")
    adapters = [found for found in done if found.study.name.startswith(ADAPTER_STUDIES)]
    figures["adapters"] = plot_adapters(adapters)
    introduction = first_page(adapters) + INTRODUCTION.format(
        findings=FINDINGS.read_text(encoding="utf-8"), together=table_of_all(done)
    )
    parts = [introduction, _at_best_section(at_best)]
    for group in groups:
        name = group[0].study.group
        figures[name] = plot_learning_rates(group)
        parts.append(_section(group, f"results_{name}.png"))
    written = [folder / "RESULTS.md", *(folder / f"results_{name}.png" for name in figures)]
    for path, figure in zip(written[1:], figures.values(), strict=True):
        save_figure(figure, path)
    written[0].write_text("\n".join(parts), encoding="utf-8")
    return written


def _at_best_section(found: Sequence[Approximation]) -> str:
    lines = [
        "| change | rank | LoRA leaves | square leaves | worth | energy | full leaves | worth | energy |",
        "| --- " * 9 + "|",
    ]
    for square, full in zip(found[::2], found[1::2], strict=True):
        cells = [square.target, str(square.rank), f"{square.lora:.4f}"]
        for own in (square, full):
            cells += [f"{own.pera:.4f}", f"{own.worth:.2f}", f"{own.energy:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    made = json.loads(approximation.RESULT.read_text(encoding="utf-8"))
    return AT_BEST.format(
        starts=approximation.STARTS,
        iterations=approximation.ITERATIONS,
        steps=SMALL_STEPS,
        made=f"{made['date']}, {made['machine']}",
        table="\n".join(lines),
    )


def kept_results() -> list[Results]:
    """The studies that have results, in their order."""
    return [Results(study, read_runs(_kept(study))) for study in STUDIES.values() if _kept(study).is_file()]


def table_of_all(results: Sequence[Results]) -> str:
    """How far each of the study's forms is from LoRA over all studies, and in how many it can be told from it."""
    lines = [
        "| method | studies | energy | better | even | worse | test loss, best rates | test loss, LoRA's rate |",
        "| --- " * 8 + "|",
    ]
    for method in list(FORMS)[1:]:
        pairs = [(found, own) for found in _counted(results) for own in found.summaries if own.method == method]
        if not pairs:
            continue
        verdicts = [_verdict(own, found.summaries[0].mean) for found, own in pairs]
        energies = [own.energy for _, own in pairs]
        at_best = [100 * own.difference / found.summaries[0].mean for found, own in pairs]
        at_equal = [100 * at_loras_rate(found, method) / found.summaries[0].mean for found, _ in pairs]
        cells = [
            *(method, str(len(pairs)), f"{min(energies):.2g} to {max(energies):.2g}"),
            *(str(verdicts.count(name)) for name in ("better", "even", "worse")),
            *(_over_studies(at_best), _over_studies(at_equal)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _counted(results: Sequence[Results]) -> list[Results]:
    return [found for found in results if not found.study.is_closer_look]


def at_loras_rate(found: Results, method: str) -> float:
    """Mean difference of the test loss from LoRA's where both have LoRA's best learning rate, over common seeds."""
    lora = found.summaries[0]
    own = {
        run.seed: run.report for run in found.runs if (run.method, run.learning_rate) == (method, lora.learning_rate)
    }
    return statistics.fmean(own[seed] - value for seed, value in lora.reports.items() if own.get(seed) is not None)


def _over_studies(shares: Sequence[float]) -> str:
    interval = mean_interval(shares)
    ends = "" if interval is None else f" [{interval[0]:+.2f}, {interval[1]:+.2f}]"
    return f"{statistics.fmean(shares):+.2f} %{ends}"


def _verdict(summary: MethodSummary, reference: float) -> str:
    if summary.interval is None or abs(summary.difference) < 0.001 * reference:
        return "even"
    low, high = summary.interval
    return "better" if high < 0 else "worse" if low > 0 else "even"


def _kept(study: Study) -> Path:
    return RESULTS / f"{study.name}.csv"


def _also(found: Results) -> list[MethodSummary]:
    """The summaries of the study's other metric, at the learning rates that its first one chose."""
    name = f"test_{found.study.also}"
    runs = [dataclasses.replace(run, report=run.metrics.get(name)) for run in found.runs]
    return Results(found.study, runs).summaries


def _section(group: Sequence[Results], picture: str) -> str:
    study = group[0].study
    columns = [
        *("rank", "method", "learning rate", f"test {study.metric}", "difference"),
        *(f"test {study.also}", "difference", "train loss", "energy", "trained", "diverged"),
    ]
    lines = [columns, ["---"] * len(columns)]
    for found in group:
        for place, (loss, other) in enumerate(zip(found.summaries, _also(found), strict=True)):
            own = [run for run in found.runs if run.method == loss.method]
            lines.append([str(found.study.rank), *_row(loss, other, own, is_reference=place == 0)])
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    names = ", ".join(f"`{found.study.name}`" for found in group)
    rates = ", ".join(f"{rate:g}" for rate in sorted({run.learning_rate for found in group for run in found.runs}))
    return (
        f"## {title(study)}\n\n{study.about} Learning rates: {rates}. {_made(group)}. Studies: {names}.\n\n{table}\n\n"
        f"![Validation loss against learning rate]({picture})\n"
    )


def _made(group: Sequence[Results]) -> str:
    """Days and machines."""
    files = [_kept(found.study).with_suffix(".json") for found in group]
    made = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    days = sorted({entry["date"] for entry in made})
    machines = dict.fromkeys(entry["machine"] for entry in made)
    return f"{days[0] if len(days) == 1 else f'{days[0]} to {days[-1]}'}: {'; '.join(machines)}"


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
    interval = "" if summary.interval is None else f" [{', '.join(map(_signed, summary.interval))}]"
    return f"{_signed(summary.difference)}{interval}"


def _signed(value: float) -> str:
    """Without a sign where nothing is left of the value."""
    text = f"{value:+.4f}"
    return text if float(text) else "0"
