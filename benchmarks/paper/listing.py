"""What can be run, how much of it is there, and how long the rest takes as far as it is known."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box

from benchmarks.paper.report import runs_of
from benchmarks.paper.rows import TABLES, Row
from benchmarks.paper.settings import LORA, Setting, commonsense
from benchmarks.paper.tables import TABLE_5
from pera_lightning.analysis.method_comparison import ComparedRun
from pera_lightning.plain_table import PlainTable

MEASURED_BY_THE_PAPER = commonsense("llama-2-7b", rank=4)
"""The setting of table 5."""


def list_tables(chosen: Mapping[str, Sequence[Row]], out: Path, seeds: Sequence[int] | None) -> PlainTable:
    """A line for each row of tables.

    Args:
        chosen: Table -> its rows.
        out: Folder of all runs.
        seeds: Other seeds than the paper's.
    """
    shown = PlainTable(
        title="Rows of the paper's tables",
        caption="runs: there, of all that the row needs, with LoRA's at the same settings; rows of several tables "
        "share theirs. missing: the time of those that are missing, by the runs that are there, or by the paper's one "
        f"measurement ({MEASURED_BY_THE_PAPER.name}, on an RTX 5090, training alone).",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for heading in ("--table", "rows", "runs", "missing"):
        shown.add_column(heading, justify="left" if heading == "rows" else "right")
    for name, rows in chosen.items():
        shown.add_section()
        shown.add_row(name, TABLES[name].about, "", "")
        for row in rows:
            shown.add_row("", *_cells(row, out, seeds))
    return shown


def _cells(row: Row, out: Path, seeds: Sequence[int] | None) -> tuple[str, str, str]:
    labels = " ".join(f"--{axis} {label}" for axis, label in row.labels.items())
    wanted = [(setting, method) for setting in row.settings for method in dict.fromkeys((LORA, row.method))]
    there, total, minutes = 0, 0, 0.0
    for setting, method in wanted:
        found = runs_of(setting, method, out, seeds)
        number = len(seeds or setting.seeds)
        there, total = there + len(found), total + number
        if number > len(found):
            minutes += (number - len(found)) * _minutes(setting, method, list(found.values()))
    return labels, f"{there} of {total}", "-" if there == total else as_time(minutes)


def _minutes(setting: Setting, method: str, found: Sequence[ComparedRun]) -> float:
    """Of a run; NaN where nobody knows."""
    if found:
        return statistics.fmean(run.minutes for run in found)
    if setting == MEASURED_BY_THE_PAPER:
        cost = TABLE_5[{"full": "pera"}.get(method, method)]
        return cost.training_minutes
    return math.nan


def as_time(minutes: float) -> str:
    """Hours and minutes."""
    if math.isnan(minutes):
        return "unknown"
    return f"{int(minutes) // 60} h {int(minutes) % 60:02}" if minutes >= 1 else "under a minute"
