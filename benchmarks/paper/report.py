"""What was found beside the paper: on the screen, as Markdown and as CSV."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box

from benchmarks.paper.rows import Column, Row, Table
from benchmarks.paper.settings import LORA, Setting
from pera_lightning.analysis.method_comparison import ComparedRun, mean_interval
from pera_lightning.cli.compare.settings import RESULT
from pera_lightning.plain_table import Lines, PlainTable
from pera_lightning.storage.atomic import replacing

Runs = dict[int, ComparedRun]
HEADINGS = ("paper", "ours", "LoRA here", "difference", "LoRA, quoted")


def runs_of(setting: Setting, method: str, out: Path, seeds: Sequence[int] | None = None) -> Runs:
    """The runs of a method that are there, at the setting's learning rate, by seed.

    Args:
        setting: The setting.
        method: Name of the method.
        out: Folder of all runs.
        seeds: Other seeds than the paper's.
    """
    found = {}
    for path in sorted((out / setting.name / "runs" / method).glob(f"lr_*/seed_*/{RESULT}")):
        run = ComparedRun(**json.loads(path.read_text(encoding="utf-8")))
        if run.learning_rate == setting.learning_rate and run.seed in (seeds or setting.seeds):
            found[run.seed] = run
    return found


@dataclass(frozen=True)
class Cell:
    """A number of a table and what was found for it.

    Attributes:
        labels: Labels of its row.
        column: Its column.
        paper: The paper's number; None where it has none.
        quoted: LoRA's in the paper, taken from others; None where there is none.
        ours: Seed -> what this method got here.
        lora: Seed -> what LoRA got here at the same settings.
        diverged: Runs of both that have no number.
    """

    labels: Mapping[str, str]
    column: Column
    paper: float | None
    quoted: float | None
    ours: dict[int, float]
    lora: dict[int, float]
    diverged: int

    @property
    def differences(self) -> list[float]:
        """This method's number less LoRA's, of costs their ratio, for each seed that both have."""
        pairs = [(value, self.lora[seed]) for seed, value in self.ours.items() if seed in self.lora]
        return [value / other if self.column.is_cost else value - other for value, other in pairs]

    def texts(self) -> tuple[str, ...]:
        """What stands under `HEADINGS`."""
        ours, lora = (self._spread(values) for values in (self.ours, self.lora))
        return self._given(self.paper), ours, lora, self._difference(), self._given(self.quoted)

    def _difference(self) -> str:
        if not self.differences:
            return "-"
        form = "{:.3f} x".format if self.column.is_cost else lambda value: self._number(value, sign="+")
        interval = mean_interval(self.differences)
        ends = "" if interval is None else f"\n[{', '.join(map(form, interval))}]"
        return form(statistics.fmean(self.differences)) + ends

    def _given(self, value: float | None) -> str:
        return "-" if value is None else self._number(value)

    def _spread(self, values: Mapping[int, float]) -> str:
        if not values:
            return "-"
        mean = self._number(statistics.fmean(values.values()))
        return mean if len(values) == 1 else f"{mean}\n± {self._number(statistics.stdev(values.values()))}"

    def _number(self, value: float, sign: str = "") -> str:
        return f"{value:{sign}.{self.column.digits}f}"


def cells(table: Table, out: Path, seeds: Sequence[int] | None = None) -> list[Cell]:
    """The numbers of a table for which there are runs."""
    return [
        cell for row in table.rows for column in row.columns for cell in [_cell(row, column, out, seeds)] if cell.ours
    ]


def _cell(row: Row, column: Column, out: Path, seeds: Sequence[int] | None) -> Cell:
    ours, lora = ([runs_of(setting, method, out, seeds) for setting in row.settings] for method in (row.method, LORA))
    return Cell(
        labels=row.labels,
        column=column,
        paper=row.paper.get(column.name),
        quoted=row.quoted.get(column.name),
        ours=_values(ours, column),
        lora=_values(lora, column),
        diverged=sum(run.diverged for runs in (*ours, *lora) for run in runs.values()),
    )


def _values(runs: Sequence[Runs], column: Column) -> dict[int, float]:
    """Seed -> number; over several settings the mean, for seeds that all of them have."""
    seeds = [seed for seed in runs[0] if all(seed in others for others in runs)]
    found = {seed: statistics.fmean(_value(others[seed], column) for others in runs) for seed in seeds}
    return {seed: value for seed, value in found.items() if math.isfinite(value)}


def _value(run: ComparedRun, column: Column) -> float:
    if run.diverged:
        return math.nan
    value = getattr(run, column.measured, run.metrics.get(column.measured))
    return math.nan if value is None else column.scale * float(value)


def as_table(table: Table, found: Sequence[Cell], note: str) -> PlainTable:
    """The screen's."""
    shown = PlainTable(
        title=f"Table {table.name}: {table.about}".replace("Table figure_", "Figure "),
        caption=caption(found, note),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for heading in (*table.axes, "", *HEADINGS):
        shown.add_column(heading, justify="right" if heading in HEADINGS else "left")
    for cell in found:
        shown.add_row(*cell.labels.values(), cell.column.name, *map(Lines, cell.texts()))
    return shown


def caption(found: Sequence[Cell], note: str) -> str:
    """What a reader has to know beside the numbers."""
    seeds = sorted({len(cell.ours) for cell in found})
    text = (
        "paper: as printed. ours: this method here, mean over seeds and standard deviation. LoRA here: LoRA at the "
        "same settings. difference: ours less LoRA here (of costs their ratio), mean over common seeds, and its 95 % "
        "interval over seeds (Student's t; none of one seed). LoRA, quoted: in the paper, taken from others. "
        f"Seeds: {', '.join(map(str, seeds)) or 'none'}."
    )
    diverged = max((cell.diverged for cell in found), default=0)
    return text + (f" Diverged, and left out: up to {diverged} runs of a row." if diverged else "") + note


def write(table: Table, found: Sequence[Cell], note: str, out: Path) -> list[Path]:
    """The table as Markdown and, with all digits and all seeds, as CSV; returns where they are."""
    name = table.name if table.name.startswith("figure") else f"table_{table.name}"
    markdown, numbers = out / f"{name}.md", out / f"{name}.csv"
    with replacing(markdown) as temporary:
        temporary.write_text("\n".join(_markdown(table, found, note)) + "\n", encoding="utf-8")
    with replacing(numbers) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*table.axes, "column", "trained", "seed", "value", "paper", "lora_quoted"])
        for cell in found:
            for trained, values in (("ours", cell.ours), ("lora", cell.lora)):
                for seed, value in values.items():
                    about = (*cell.labels.values(), cell.column.name)
                    writer.writerow([*about, trained, seed, value, cell.paper, cell.quoted])
    return [markdown, numbers]


def _markdown(table: Table, found: Sequence[Cell], note: str) -> Iterator[str]:
    yield f"# Table {table.name} of arXiv 2604.11841: {table.about}\n".replace("Table figure_", "Figure ")
    yield f"{caption(found, note)}\n"
    headings = (*table.axes, "column", *HEADINGS)
    yield f"| {' | '.join(headings)} |"
    yield f"|{'|'.join('---' for _ in headings)}|"
    for cell in found:
        texts = (*cell.labels.values(), cell.column.name, *(text.replace("\n", " ") for text in cell.texts()))
        yield f"| {' | '.join(texts)} |"
