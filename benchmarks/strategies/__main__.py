"""The CPU matrix: the same fit under each strategy.

    make strategies
    python -m benchmarks.strategies --only "single process" "ddp x2"
    python -m benchmarks.strategies --model models/smollm2-135m-instruct

Prints a table and, with all rows, writes docs/strategies.md and benchmarks/results/strategies.csv.
"""

from __future__ import annotations

import argparse
import csv
import platform
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from benchmarks.strategies.report import show, write
from benchmarks.strategies.rows import ROOT, ROWS, Row
from benchmarks.strategies.task import write_quickstart_rows, write_tiny_task

QUICKSTART = ROOT / "data" / "tool_calls" / "train.jsonl"


def main(words: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print and write."""
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="some of the rows")
    parser.add_argument("--model", type=Path, help="folder of a model for the quickstart's data, not the tiny one")
    arguments = parser.parse_args(words)
    # Wide enough for the table, also where the output goes to a file.
    console = Console(width=max(110, Console().width))
    with tempfile.TemporaryDirectory() as folder:
        chosen = [row for row in ROWS if row.name in arguments.only]
        rows = measure(chosen, arguments.model, Path(folder), console)
    show(rows, console)
    if len(rows) == len(ROWS):
        write_page(rows, arguments.model)
    return rows


def measure(chosen: list[Row], model: Path | None, folder: Path, console: Console) -> list[dict[str, Any]]:
    """The rows with their difference to the first one."""
    if model is None:
        model, data = write_tiny_task(folder)
    else:
        model, data = model.absolute(), folder / "rows.jsonl"
        write_quickstart_rows(model, QUICKSTART, data)
    rows = []
    for number, row in enumerate(track(chosen, "Strategies", console=console)):
        if reason := row.refusal():
            console.print(f"{row.name}: not permitted here ({reason})")
            continue
        rows.append(row.measure(model, data, folder / f"run{number}"))
        rows[-1]["difference"] = rows[-1]["final_loss"] - rows[0]["final_loss"]
    return rows


def write_page(rows: list[dict[str, Any]], model: Path | None) -> None:
    """The page and the numbers, of the tiny model or of a model's own."""
    name, base = "strategies", "a random Llama of two blocks"
    if model is not None:
        name, base = f"strategies_{model.name}", f"{model.name} (the quickstart's data)"
    write(rows, base, header(), ROOT / "docs" / f"{name}.md")
    write_csv(rows, ROOT / "benchmarks" / "results" / f"{name}.csv")


def header() -> str:
    """Machine and versions."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning", "transformers"))
    return f"{platform.machine()} CPU, Python {platform.python_version()}, {versions}"


def write_csv(rows: list[dict[str, Any]], path: Path) -> None:
    """The unrounded numbers."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
