"""An inspection as a table, on the screen and in a file."""

from __future__ import annotations

import csv
from collections.abc import Collection, Sequence
from pathlib import Path

from rich import box

from pera_lightning.analysis.energy import NO_EFFECT
from pera_lightning.analysis.inspection import AdapterInspection, LayerInspection
from pera_lightning.plain_table import PlainTable
from pera_lightning.storage.atomic import replacing


def as_table(found: AdapterInspection, width: int) -> PlainTable:
    """The layers with most energy and one row for all together; what the columns mean stands in `LayerInspection`.

    Args:
        found: The layers.
        width: Characters of the screen. Columns are left out where a layer's name would not fit beside them.
    """
    ranked = sorted(found.layers, key=lambda row: row.norm, reverse=True)[:MOST_LAYERS]
    columns = _columns(found, ranked)
    # A cell and the blanks beside it; the table has one more before its first column.
    widths = {heading: 2 + max(map(len, (heading, *cells))) for heading, cells in columns.items()}
    total = f"all {len(found.layers)} layers"
    name = 3 + max(map(len, (*(row.layer for row in ranked), total)))
    for heading in _LEFT_OUT_FIRST:
        if name + sum(map(widths.__getitem__, columns)) > width:
            columns.pop(heading, None)
    is_short = len(ranked) < len(found.layers) or len(columns) < len(widths)
    table = PlainTable(title=_title(found, len(ranked)), caption=_caption(found, columns, is_short=is_short))
    table.caption_justify, table.box, table.padding = "left", box.SIMPLE_HEAD, (0, 1, 0, 0)
    needed = name + sum(map(widths.__getitem__, columns))
    # A screen that is narrower than a name wraps the line itself: a name in two cells could not be copied.
    table.width = needed if needed > width else None
    table.add_column("layer", no_wrap=True)
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    *rows, totals = zip(*columns.values(), strict=True)
    for row, cells in zip(ranked, rows, strict=True):
        table.add_row(row.layer, *cells)
    table.add_section()
    table.add_row(total, *totals)
    return table


MOST_LAYERS = 10
"""Rows on the screen; layers.csv has all."""
_MEANINGS = {
    "linear": "linear, square, ...: energies of the parts over their sum",
    "beyond r": "beyond r: energy after the r largest singular values, which no LoRA of rank r could hold",
    "rank": "rank: singular values above 1e-6 of the largest",
    "effective": "effective: exp of their entropy",
    "stable": "stable: |dW|^2 over the largest squared",
}
_LEFT_OUT_FIRST = "shape", "rank", "r", "K", "stable", "effective", "beyond r"


def _title(found: AdapterInspection, shown: int) -> str:
    total = len(found.layers)
    return f"Weight change dW, the {shown} of {total} layers with most energy" if shown < total else "Weight change dW"


def _caption(found: AdapterInspection, columns: Collection[str], *, is_short: bool) -> str:
    words = ". ".join(meaning for heading, meaning in _MEANINGS.items() if heading in columns) + "."
    if len(found.parts) > 1 and found.polynomial_share < NO_EFFECT:
        words += f" All but the linear part: {found.polynomial_share:.1g} of the energy, no practical effect."
    return f"{words} All layers and columns are in layers.csv." if is_short else words


def _columns(found: AdapterInspection, rows: Sequence[LayerInspection]) -> dict[str, list[str]]:
    """Heading -> a cell for each row and one for all layers together."""
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
