"""Interactions of a hidden state's entries as a table, on the screen and in a file."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from rich import box
from torch import Tensor

from pera_lightning.plain_table import PlainTable
from pera_lightning.storage.atomic import replacing


def as_table(found: dict[str, Tensor]) -> PlainTable:
    """A row for each matrix; the LoRA that the others are set against is the last one that is called so.

    Args:
        found: What was measured -> its matrix.
    """
    lora = next(name for name in reversed(found) if name.startswith("LoRA"))
    caption = (
        f"i != j: share of the pairs of different entries in the sum. from {lora}: mean |difference| over its mean."
    )
    table = PlainTable(caption=caption, caption_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for heading in ("mean", "largest", "i != j", f"from {lora}"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, matrix in found.items():
        distance = "-" if name == lora else f"{relative_distance(matrix, found[lora]):.2g}"
        table.add_row(name, f"{matrix.mean():.4g}", f"{matrix.max():.4g}", f"{mixed_share(matrix):.2g}", distance)
    return table


def relative_distance(matrix: Tensor, reference: Tensor) -> float:
    """Mean absolute difference over the mean of the reference; 0 where both are zero."""
    return ((matrix - reference).abs().mean() / reference.mean().clamp_min(1e-30)).item()


def mixed_share(matrix: Tensor) -> float:
    """Share of the entries off the diagonal in the sum; 0 where it is."""
    return 1 - (matrix.diagonal().sum() / matrix.sum().clamp_min(1e-30)).item() if matrix.any() else 0.0


def write_matrices(found: Mapping[str, Tensor], path: Path) -> None:
    """A CSV file with a row per pair of entries (from 0, as in the picture) and a column per matrix."""
    size = len(next(iter(found.values())))
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["i", "j", *found])
        for i in range(size):
            writer.writerows([i, j, *(matrix[i, j].item() for matrix in found.values())] for j in range(size))
