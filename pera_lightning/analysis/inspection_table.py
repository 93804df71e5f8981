"""An inspection as a table, on the screen and in a file."""

from __future__ import annotations

import csv
from pathlib import Path

from rich import box

from pera_lightning.analysis.inspection import AdapterInspection
from pera_lightning.plain_table import PlainTable
from pera_lightning.storage.atomic import replacing


def as_table(found: AdapterInspection, width: int) -> PlainTable:
    """One row per layer and one for all layers together; what the columns mean stands in `LayerInspection`.

    Args:
        found: The layers.
        width: Characters of the screen. Where the columns leave too little for the layers' names, the columns about the
            shape and the rank are left out.
    """
    columns = _columns(found)
    narrow = {heading: cells for heading, cells in columns.items() if heading not in _LEFT_OUT_FIRST}
    # A cell and the blanks beside it.
    taken = sum(2 + max(map(len, (heading, *cells))) for heading, cells in columns.items())
    is_narrow = width - taken < min(_NAME, max(len(row.layer) for row in found.layers))
    caption = _CAPTION + " More columns are in layers.csv." if is_narrow else _CAPTION
    table = PlainTable(title="Weight change dW per layer", caption=caption, caption_justify="left")
    table.box, table.padding = box.SIMPLE_HEAD, (0, 1, 0, 0)
    shown = narrow if is_narrow else columns
    table.add_column("layer", overflow="fold")
    for heading in shown:
        table.add_column(heading, justify="right", no_wrap=True)
    *rows, total = zip(*shown.values(), strict=True)
    for row, cells in zip(found.layers, rows, strict=True):
        table.add_row(row.layer, *cells)
    table.add_section()
    table.add_row("all layers", *total)
    return table


_CAPTION = (
    "linear, square, ...: energies of the parts over their sum. beyond r: energy after the r largest singular values, "
    "which no LoRA of rank r could hold. rank: singular values above 1e-6 of the largest. effective: exp of their "
    "entropy. stable: |dW|^2 over the largest squared."
)
_LEFT_OUT_FIRST = "shape", "r", "K", "rank"
_NAME = 24
"""Characters of a line in which a folded name can still be read."""


def _columns(found: AdapterInspection) -> dict[str, list[str]]:
    """Heading -> a cell for each layer and one for all layers together."""
    rows = found.layers
    return {
        "shape": [*(f"{row.shape[0]} x {row.shape[1]}" for row in rows), ""],
        "r": [*(str(row.rank) for row in rows), ""],
        "K": [*(str(row.expanded_rank) for row in rows), ""],
        "|dW|": [*(f"{row.norm:.3g}" for row in rows), f"{found.norm:.3g}"],
        **{
            part: [
                *(f"{row.share(part):.2g}" if part in row.part_norms else "-" for row in rows),
                f"{found.share(part):.2g}",
            ]
            for part in found.parts
        },
        "beyond r": [*(f"{row.beyond_rank:.2g}" for row in rows), f"{found.beyond_rank:.2g}"],
        "rank": [*(str(row.numerical_rank) for row in rows), ""],
        "effective": [*(f"{row.effective_rank:.2f}" for row in rows), ""],
        "stable": [*(f"{row.stable_rank:.2f}" for row in rows), ""],
    }


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
