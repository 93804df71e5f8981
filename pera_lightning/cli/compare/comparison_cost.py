"""What a comparison costs, told before it starts: runs times minutes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from pera_lightning.cli.compare.comparison_plan import Plan
from pera_lightning.cli.compare.settings import RESULT
from pera_lightning.cli.screen import show_table
from pera_lightning.plain_table import PlainTable

if TYPE_CHECKING:
    from pera_lightning.cli.compare.single_run import Cell


class MethodCost(NamedTuple):
    """What the missing runs of one method take.

    Attributes:
        method: Its name.
        runs: How many are missing.
        each: Minutes of one; NaN where it is not known.
    """

    method: str
    runs: int
    each: float


def announce(tuned: Sequence[Cell], others: Sequence[int], plan: Plan) -> None:
    """Show how many runs are missing and about how long they take; runs of each method that has none are tried first.

    Args:
        tuned: The runs that every method makes.
        others: Seeds that a method runs at its best learning rate besides.
        plan: The comparison.

    Raises:
        PeraError: A method cannot be run.
    """
    costs = [_cost([cell for cell in tuned if cell.method == method], others) for method in plan.methods]
    costs = [cost for cost in costs if cost.runs]
    if costs:
        show_table(as_table(costs, plan))


def as_table(costs: Sequence[MethodCost], plan: Plan) -> PlainTable:
    """One row per method, and their sum."""
    total = sum(cost.runs * cost.each for cost in costs) / min(plan.workers, sum(cost.runs for cost in costs))
    caption = "by a trial of a few steps, or by runs that are there; what stops a training early is not foreseen."
    if plan.extensions:
        caption += f" Each method makes up to {plan.extensions * plan.tuning_seeds} runs more beyond the grid."
    table = PlainTable("method", "runs", "minutes each", "minutes", title="What the comparison takes", caption=caption)
    for cost in costs:
        table.add_row(cost.method, str(cost.runs), _minutes(cost.each), _minutes(cost.runs * cost.each))
    workers = f" ({plan.workers} at a time)" if plan.workers > 1 else ""
    table.add_row("all", str(sum(cost.runs for cost in costs)), "", f"{_minutes(total)}{workers}")
    return table


def _cost(cells: Sequence[Cell], others: Sequence[int]) -> MethodCost:
    from pera_lightning.cli.compare.trial import minutes_of

    found = [cell.result() for cell in cells]
    made = [run.minutes for run in found if run is not None and not math.isnan(run.minutes)]
    # Which learning rate the other seeds run at is known only then.
    missing = sum(run is None for run in found) + len(others)
    if all(run is not None for run in found) and _has_others(cells[0], others):
        missing = 0
    each = statistics.median(made) if made else (minutes_of(cells[0]) if missing else math.nan)
    return MethodCost(cells[0].method, missing, each)


def _has_others(cell: Cell, seeds: Sequence[int]) -> bool:
    """Whether runs of these seeds are there at some learning rate."""
    folder = cell.folder.parent.parent
    return all(any(folder.glob(f"lr_*/seed_{seed}/{RESULT}")) for seed in seeds)


def _minutes(value: float) -> str:
    if math.isnan(value):
        return "not known"
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"
