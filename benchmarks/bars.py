"""What the project wants to reach, each beside the column of a result that shows it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

Rows = dict[str, list[dict[str, Any]]]
"""Per benchmark, its rows."""

SAVED = {0.05: {8: 0.40, 16: 0.42, 32: 0.45}, 0.0: {8: 1.02, 16: 1.05, 32: 1.10}}
STEP_TIME = {4: 1.02, 8: 1.06, 16: 1.25, 32: 1.90}
DECODE = {8: 1.05, 32: 1.15}
MERGED = 1.02
BIG_LAYER = {16: 1.08, 32: 1.28}


class Bar(NamedTuple):
    """One figure to reach."""

    name: str
    naive: float | None
    floor: float | None
    """By counting multiply-adds."""
    bar: float
    measured: float

    @property
    def verdict(self) -> str:
        """Whether the figure is reached."""
        if self.measured <= self.bar:
            return "reached"
        within = self.floor is not None and self.measured <= 1.05 * self.floor
        return "missed, but within 5 % of the floor" if within else "missed"


def bars(rows: Rows) -> Iterator[Bar]:
    """Every figure to reach for which there is a measurement."""
    for row in rows["train_step"]:
        bar = SAVED[row["dropout"]].get(row["rank"])
        if bar is not None:
            name = f"saved for backward over LoRA's, rank {row['rank']}, dropout {row['dropout']}"
            yield Bar(name, row["saved_share_naive"], None, bar, row["saved_share_pera"])
    for row in rows["train_step"]:
        if row["dropout"] == 0.05:
            name = f"step time over LoRA's, rank {row['rank']}"
            bar = STEP_TIME[row["rank"]]
            yield Bar(name, row["step_time_naive"], row["step_time_floor"], bar, row["step_time_pera"])
    for row in rows["decode"]:
        yield Bar(f"merged decode over base, rank {row['rank']}", None, 1.0, MERGED, row["merged_over_base"])
        name = f"unmerged decode over LoRA's, rank {row['rank']}"
        yield Bar(name, row["naive_over_lora"], None, DECODE[row["rank"]], row["pera_over_lora"])
    for row in rows["big_layer"]:
        name = f"layer 4096 -> 14336, 2048 tokens, over LoRA's, rank {row['rank']}"
        yield Bar(name, row["time_naive"], row["floor"], BIG_LAYER[row["rank"]], row["time_pera"])
