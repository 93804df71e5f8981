"""An inspection as a table, on the screen and in a file."""

from __future__ import annotations

import csv
from pathlib import Path

from rich.table import Table
from rich.text import Text

from pera_lightning.analysis.inspection import AdapterInspection, LayerInspection
from pera_lightning.checkpoint.atomic import replacing


def as_table(found: AdapterInspection) -> Table:
    """One row per layer and one for all layers together; what the columns mean stands in `LayerInspection`."""
    table = Table(title="Weight change dW per layer", caption=_CAPTION, caption_justify="left")
    table.add_column("layer", overflow="fold")
    for heading in ("shape", "r", "K", "|dW|", *found.parts, "beyond r", "rank", "effective", "stable"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in found.layers:
        table.add_row(Text(row.layer), *_cells(row, found.parts))
    table.add_section()
    shares = (f"{found.share(part):.2g}" for part in found.parts)
    table.add_row("all layers", "", "", "", f"{found.norm:.3g}", *shares, f"{found.beyond_rank:.2g}", "", "", "")
    return table


_CAPTION = (
    "linear, square, ...: energies of the parts over their sum. beyond r: energy after the r largest singular values, "
    "which no LoRA of rank r could hold. rank: singular values above 1e-6 of the largest. effective: exp of their "
    "entropy. stable: |dW|^2 over the largest squared."
)


def _cells(row: LayerInspection, parts: tuple[str, ...]) -> tuple[str, ...]:
    return (
        f"{row.shape[0]} x {row.shape[1]}",
        str(row.rank),
        str(row.expanded_rank),
        f"{row.norm:.3g}",
        *(f"{row.share(part):.2g}" if part in row.part_norms else "-" for part in parts),
        f"{row.beyond_rank:.2g}",
        str(row.numerical_rank),
        f"{row.effective_rank:.2f}",
        f"{row.stable_rank:.2f}",
    )


def write_table(found: AdapterInspection, path: Path) -> None:
    """A CSV file with a row per layer and all its numbers in full."""
    norms = [f"norm of {part}" for part in found.parts]
    shares = [f"share of {part}" for part in found.parts]
    numbers = ("polynomial_energy", "beyond_rank", "numerical_rank", "effective_rank", "stable_rank")
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["layer", "out", "in", "rank", "expanded_rank", "norm", *norms, *shares, *numbers])
        for row in found.layers:
            writer.writerow(
                [
                    *(row.layer, *row.shape, row.rank, row.expanded_rank, row.norm),
                    *(row.part_norms.get(part, 0.0) for part in found.parts),
                    *(row.share(part) for part in found.parts),
                    *(getattr(row, name) for name in numbers),
                ]
            )
