"""The matrix as a table for the screen, and as `docs/strategies.md`."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.strategies.task import GLOBAL_BATCH, ROWS

INTRODUCTION = f"""# Strategies

The same fit under each strategy, on CPU processes of one thread each (gloo), in float32: {{model}}, rank 4, order 2,
without dropout, two epochs of {ROWS} rows in global batches of {GLOBAL_BATCH}. Every row has as many answer tokens, so
that the mean over the processes is the mean over the batch; what is left of the difference is rounding: sums are taken
in another order.

- *final loss*: of the last step, mean over the processes; *difference*: to the single process.
- *ranks equal*: whether the adapters of all processes are the same bytes (SHA-256).
- *checkpoint*: bytes of one checkpoint, with the optimizer's state; it grows with the number of processes by the random
  states that each keeps.
- *resume bitwise*: whether a run from the checkpoint of the first epoch ends with the same adapter; if not, by how much
  its losses differ at most. With more than two processes DDP does not repeat itself: after the first step of a run it
  orders the gradients anew for their way through the network, and with the order the rounding of their sums changes.
- *seconds*: of both runs together, with the start of the processes.

`make strategies` measures all of it again and writes this page.
"""
HEADINGS = [
    "strategy",
    "processes",
    "final loss",
    "difference",
    "ranks equal",
    "checkpoint bytes",
    "resume bitwise",
    "seconds",
]


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """Print the table."""
    cells = [_cells(row) for row in rows]
    table = Table(title="Strategies", box=box.SIMPLE)
    for number, heading in enumerate(HEADINGS):
        # On a narrow screen headings may wrap, numbers may not.
        table.add_column(heading, min_width=max(len(line[number]) for line in cells))
    for line in cells:
        table.add_row(*line)
    console.print(table)


def write(rows: list[dict[str, Any]], model: str, header: str, path: Path) -> None:
    """Write the page."""
    lines = [HEADINGS, ["---"] * len(HEADINGS), *map(_cells, rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    parts = [INTRODUCTION.format(model=model), f"{datetime.date.today()}: {header}.\n", table + "\n"]
    path.write_text("\n".join(parts), encoding="utf-8")


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["strategy"],
        str(row["processes"]),
        f"{row['final_loss']:.6f}",
        f"{row['difference']:.1e}",
        "yes" if row["ranks_equal"] else "NO",
        f"{row['checkpoint_bytes']:,}",
        "yes" if row["resume_bitwise"] else f"no ({row['resume_difference']:.0e})",
        f"{row['seconds']:.0f}",
    ]
