"""A comparison of methods as tables, on the screen and in files."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

from rich import box

from pera_lightning.analysis.method_comparison import ComparedRun, MethodSummary
from pera_lightning.plain_table import Lines, PlainTable
from pera_lightning.storage.atomic import replacing

_PLAIN = tuple(field.name for field in dataclasses.fields(ComparedRun) if field.name != "metrics")
"""Columns that every run has; the metrics follow."""


def as_table(summaries: Sequence[MethodSummary], report: str) -> PlainTable:
    """One row per method; what the columns mean stands in `MethodSummary`."""
    title = f"{report}, each method at its own best learning rate"
    reference = summaries[0].method
    caption = (
        "rate: the best learning rate in validation (! at an end of the grid: try beyond it). test: "
        f"{report}, mean over seeds and standard deviation. difference: mean over seeds of the difference from "
        f"{reference} with the same seed, and its 95 % interval over seeds (Student's t). energy: norm of the "
        "polynomial part of dW over that of the linear one. peak MB: most memory in training, of tensors on a GPU, "
        "of the process on a CPU. disk MB: the saved adapter."
    )
    table = PlainTable(title=title, caption=caption, caption_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    rows = [cells(summary, is_reference=summary.method == reference) for summary in summaries]
    for heading in HEADINGS:
        # As wide as the longest word, so that a narrow screen folds the numbers that matter last.
        column = [heading, *(row[HEADINGS.index(heading)] for row in rows)]
        width = max(map(len, "\n".join(column).splitlines()))
        table.add_column(Lines(heading), justify="left" if heading == "method" else "right", min_width=width)
    for row in rows:
        table.add_row(*map(Lines, row))
    return table


HEADINGS = ("method", "rate", "test", "difference", "energy", "trained", "step\nms", "peak\nMB", "disk\nMB")
"""As narrow as they can be: nine columns are to fit on 80 characters."""


def cells(summary: MethodSummary, *, is_reference: bool) -> tuple[str, ...]:
    """The cells of a summary under `HEADINGS`."""
    rate = "none" if summary.learning_rate is None else f"{summary.learning_rate:g}{'!' * summary.at_edge}"
    if summary.diverged:
        rate += f"\n{summary.diverged} of {summary.runs}\ndiverged"
    spread = "" if math.isnan(summary.spread) else f"\n± {summary.spread:.4f}"
    difference = "-"
    if not is_reference and summary.differences:
        difference = _signed(summary.difference)
        if summary.interval is not None:
            difference += f"\n{_signed(summary.interval[0])} to\n{_signed(summary.interval[1])}"
    return (
        summary.method,
        rate,
        f"{summary.mean:.4f}{spread}",
        difference,
        f"{summary.energy:.2g}",
        f"{summary.trainable:,}",
        f"{summary.step_ms:.0f}",
        _size(summary.peak_mb),
        _size(summary.disk_mb),
    )


def _signed(value: float) -> str:
    """Without a sign where nothing is left of the value."""
    text = f"{value:+.4f}"
    return text if float(text) else "0"


def _size(megabytes: float) -> str:
    return "-" if math.isnan(megabytes) else f"{megabytes:,.0f}" if megabytes >= 100 else f"{megabytes:.3g}"


def write_runs(runs: Sequence[ComparedRun], path: Path) -> None:
    """A CSV file with a row per run, all its numbers in full; metrics that a run lacks are empty."""
    names = sorted({name for run in runs for name in run.metrics})
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*_PLAIN, *names])
        for run in runs:
            writer.writerow([*(getattr(run, name) for name in _PLAIN), *(run.metrics.get(name) for name in names)])


def read_runs(path: Path) -> list[ComparedRun]:
    """The runs of a file that `write_runs` wrote."""
    with path.open(newline="", encoding="utf-8") as file:
        return [_run(row) for row in csv.DictReader(file)]


def _run(row: dict[str, str]) -> ComparedRun:
    def number(name: str) -> float | None:
        return float(row[name]) if row[name] else None

    return ComparedRun(
        method=row["method"],
        learning_rate=float(row["learning_rate"]),
        seed=int(row["seed"]),
        selection=number("selection"),
        report=number("report"),
        metrics={name: float(value) for name, value in row.items() if name not in _PLAIN and value},
        train_loss=number("train_loss"),
        energy=float(row["energy"]),
        trainable=int(row["trainable"]),
        steps=int(row["steps"]),
        step_ms=float(row["step_ms"]),
        reason=row["reason"],
        # Earlier files have no such columns.
        **{name: number(name) or math.nan for name in ("peak_mb", "disk_mb", "minutes") if name in row},
    )
