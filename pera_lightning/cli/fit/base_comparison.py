"""Metrics of a test with and without the adapter, side by side."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from pera_lightning.plain_table import PlainTable
from pera_lightning.storage.atomic import check_file, replacing
from pera_lightning.storage.remote import Place

COMPARISON_FILE = "comparison.csv"
_COLUMNS = ("metric", "base", "adapted")
Comparison = dict[str, tuple[float, float]]
"""Metric -> its value for the base model and for the adapted one."""


def comparison(base: Mapping[str, float], adapted: Mapping[str, float]) -> Comparison:
    """Pair the metrics that both tests logged."""
    return {name: (base[name], adapted[name]) for name in base if name in adapted}


def as_table(values: Comparison) -> PlainTable:
    """The comparison for the screen."""
    table = PlainTable(title="Test without and with the adapter")
    for heading in ("metric", "base", "adapted"):
        table.add_column(heading, justify="left" if heading == "metric" else "right")
    for name, pair in values.items():
        table.add_row(name, *(f"{value:.4g}" for value in pair))
    return table


def check_comparison(path: Place, *, overwrite: bool = False) -> None:
    """Raise FolderError unless a comparison may be written to a file: there is none, or it holds another one."""
    heading = ",".join(_COLUMNS).encode()
    check_file(path, lambda path: path.read_bytes().startswith(heading), overwrite=overwrite)


def write_comparison(values: Comparison, path: Path) -> None:
    """A CSV file with the columns metric, base and adapted."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        writer.writerows([name, *pair] for name, pair in values.items())
