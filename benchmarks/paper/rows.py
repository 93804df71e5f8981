"""The tables as rows that can be run: what each trains, and what the paper found."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.paper.settings import MEAN, TRAINING_MINUTES, Setting, commonsense, glue
from benchmarks.paper.tables import (
    COMMONSENSE_TASKS,
    FIGURE_6,
    GLUE_TASKS,
    PLACEMENTS,
    RANKS,
    SHARES,
    TABLE_1,
    TABLE_1_QUOTED,
    TABLE_2,
    TABLE_2_QUOTED,
    TABLE_5,
    TABLE_6,
    TERMS,
    Scores,
)
from pera_lightning.did_you_mean import did_you_mean, near
from pera_lightning.errors import ConfigError

FULL = "full"
METHOD = {"pera": FULL}
"""Methods of the paper -> `compare`'s names, where they differ."""
REPORTED = "report"
"""Of `ComparedRun`: what its setting reports."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: Its heading.
        measured: Name of a metric of a run, or of an attribute of `ComparedRun`.
        scale: Times this it is the number in the table.
        digits: Of the number in the table.
        is_cost: Whether it is compared as a ratio, not as a difference.
    """

    name: str
    measured: str
    scale: float = 100.0
    digits: int = 2
    is_cost: bool = False


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        labels: What it is named by in its table, such as a model and a rank.
        settings: What is trained; of several the mean is reported.
        columns: What is reported.
        paper: Heading -> the paper's number.
        quoted: Heading -> LoRA's, which the paper takes from others.
        method: Name of `compare`'s method beside LoRA.
    """

    labels: Mapping[str, str]
    settings: tuple[Setting, ...]
    columns: tuple[Column, ...]
    paper: Mapping[str, float]
    quoted: Mapping[str, float] = field(default_factory=dict)
    method: str = FULL


@dataclass(frozen=True)
class Table:
    """A table of the paper.

    Attributes:
        name: Its number, or "figure_6".
        about: What it shows.
        rows: Its rows.
    """

    name: str
    about: str
    rows: tuple[Row, ...]

    @property
    def axes(self) -> list[str]:
        """What its rows differ in."""
        return list(self.rows[0].labels)

    def select(self, wanted: Mapping[str, Sequence[str]]) -> list[Row]:
        """The rows with such labels.

        Args:
            wanted: Axis -> labels, in upper or lower case; axes that are left out are taken whole.

        Raises:
            ConfigError: The table has no such axis, label or row.
        """
        for axis, labels in wanted.items():
            self._check(axis, labels)
        chosen = {axis: {label.lower() for label in labels} for axis, labels in wanted.items()}
        rows = [row for row in self.rows if all(row.labels[axis].lower() in chosen[axis] for axis in chosen)]
        if not rows:
            raise ConfigError(
                f"Table {self.name} has no such row.",
                got=", ".join(f"{axis} {' '.join(labels)}" for axis, labels in wanted.items()),
                expected="; ".join(" ".join(row.labels.values()) for row in self.rows),
                fix="leave one of them out, and all rows with the others are run",
            )
        return rows

    def _check(self, axis: str, labels: Iterable[str]) -> None:
        if axis not in self.axes:
            raise ConfigError(
                f"The rows of table {self.name} do not differ in that.",
                got=f"--{axis}",
                expected=" or ".join(f"--{name}" for name in self.axes),
                fix="leave it out, or name another table",
            )
        known = list(dict.fromkeys(row.labels[axis] for row in self.rows))
        for label in labels:
            if label.lower() not in map(str.lower, known):
                raise ConfigError(
                    f"Table {self.name} has no row with that {axis}.",
                    got=label,
                    expected=", ".join(known),
                    fix=did_you_mean(near(label, known), "name one of these"),
                )


TASKS = (
    *(Column(heading, f"test_{task}") for heading, task in COMMONSENSE_TASKS.items()),
    Column("mean", MEAN),
)
LOSS = Column("training loss", "train_loss", scale=1.0, digits=4)
COSTS = (
    Column("training GB", "peak_mb", scale=1e-3, is_cost=True),
    Column("training minutes", TRAINING_MINUTES, scale=1.0, digits=0, is_cost=True),
    Column("BoolQ GB", "test_boolq_gb", scale=1.0, is_cost=True),
    Column("BoolQ seconds", "test_boolq_seconds", scale=1.0, digits=0, is_cost=True),
)
"""In the order of `Cost`."""
LLAMA_3 = "llama-3-8b"


def _commonsense_row(
    labels: dict[str, str],
    scores: Scores,
    *,
    model: str = LLAMA_3,
    rank: int = 16,
    layers: str = TABLE_6.layers,
    share: float = 1.0,
    method: str = FULL,
) -> Row:
    quoted = TABLE_1_QUOTED.get((model, "LoRA", rank)) if (layers, share) == (TABLE_6.layers, 1.0) else None
    return Row(
        labels,
        (commonsense(model, rank=rank, layers=layers, share=share),),
        TASKS,
        _by_heading(scores),
        {} if quoted is None else _by_heading(quoted),
        method,
    )


def _by_heading(scores: Scores) -> dict[str, float]:
    return dict(zip((column.name for column in TASKS), (*scores.tasks, scores.mean), strict=True))


def _glue_rows(model: str) -> Iterator[Row]:
    """One for each task, and one for their mean."""
    scores, quoted = TABLE_2[model], TABLE_2_QUOTED[model]
    settings = [glue(model, heading) for heading in GLUE_TASKS]
    for place, heading in enumerate(GLUE_TASKS):
        yield _glue_row(model, heading, settings[place : place + 1], scores.tasks[place], quoted.tasks[place])
    yield _glue_row(model, "mean", settings, scores.mean, quoted.mean)


def _glue_row(model: str, task: str, settings: Sequence[Setting], paper: float, quoted: float) -> Row:
    column = Column("score", REPORTED)
    labels = {"model": model, "task": task}
    return Row(labels, tuple(settings), (column,), {column.name: paper}, {column.name: quoted})


def _means(name: str, about: str, table: Table) -> Table:
    """A table that gives the means of another one."""
    return Table(name, about, tuple(dataclasses.replace(row, columns=TASKS[-1:]) for row in table.rows))


def _in_order() -> Iterator[Table]:
    yield Table(
        "1",
        "commonsense tasks, three language models",
        tuple(
            _commonsense_row({"model": model, "rank": str(rank)}, scores, model=model, rank=rank)
            for (model, rank), scores in TABLE_1.items()
        ),
    )
    yield Table("2", "GLUE, RoBERTa", tuple(row for model in TABLE_2 for row in _glue_rows(model)))
    placements = Table(
        "10",
        "adapted layers, Llama-3-8B, rank 16",
        tuple(_commonsense_row({"placement": layers}, scores, layers=layers) for layers, scores in PLACEMENTS.items()),
    )
    terms = Table(
        "12",
        "square and cross terms, Llama-3-8B, rank 16",
        tuple(
            _commonsense_row({"terms": name}, scores, method={"both": FULL}.get(name, name))
            for name, scores in TERMS.items()
        ),
    )
    yield _means("3", f"{placements.about}: means", placements)
    yield _means("4", f"{terms.about}: means", terms)
    yield Table("5", "costs of training and of answering BoolQ, Llama-2-7B, rank 4", _of_methods(COSTS, TABLE_5))
    yield Table(
        "9",
        "ranks, Llama-3-8B",
        tuple(_commonsense_row({"rank": str(rank)}, scores, rank=rank) for rank, scores in RANKS.items()),
    )
    yield placements
    yield Table(
        "11",
        "shares of the training rows, Llama-3-8B, rank 16",
        tuple(_commonsense_row({"share": str(share)}, scores, share=share) for share, scores in SHARES.items()),
    )
    yield terms
    losses = {name: (loss,) for name, loss in FIGURE_6.items()}
    yield Table("figure_6", "training loss at the end, Llama-2-7B, rank 4", _of_methods((LOSS,), losses))


def _of_methods(columns: tuple[Column, ...], found: Mapping[str, Sequence[float]]) -> tuple[Row, ...]:
    """A row for each method, of Llama-2-7B at rank 4."""
    names = [column.name for column in columns]
    setting = commonsense("llama-2-7b", rank=4)
    return tuple(
        Row(
            {"method": name}, (setting,), columns, dict(zip(names, numbers, strict=True)), method=METHOD.get(name, name)
        )
        for name, numbers in found.items()
    )


TABLES = {table.name: table for table in _in_order()}


def table_of(name: str) -> Table:
    """The table of that name.

    Raises:
        ConfigError: There is none that can be run.
    """
    if name not in TABLES:
        raise ConfigError(
            "There is no such table of results.",
            got=name,
            expected=", ".join(TABLES),
            fix="tables 6 to 8 are settings, in configs/paper" if name in ("6", "7", "8") else "name one of these",
        )
    return TABLES[name]
