"""Prints what the quickstart achieved, from the metrics that its three runs logged.

    python examples/tool_calls/report.py runs/quickstart

reads `test_base/metrics.csv`, `test_adapted/metrics.csv` and the adapter and curve under `fit/`.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

MEGABYTE = 1e6


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Print the result table of the quickstart.")
    parser.add_argument("runs", type=Path, help="folder that holds fit, test_base and test_adapted")
    runs = parser.parse_args().runs
    base, adapted = (test_metrics(runs / name / "metrics.csv") for name in ("test_base", "test_adapted"))
    table = Table(title="Held-out requests: phrasings and values never seen in training")
    for heading in ("", "base", "with the adapter"):
        table.add_column(heading)
    percents = [f"{100 * metrics['test_exact_match']:.1f} %" for metrics in (base, adapted)]
    table.add_row("exact match of the tool call", *percents)
    table.add_row("loss per answer token", *(f"{metrics['test_loss']:.3f}" for metrics in (base, adapted)))
    table.add_row("size on disk", *(f"{size / MEGABYTE:.1f} MB" for size in (base_size(runs), adapter_size(runs))))
    console = Console()
    console.print(table)
    for what, path in (
        ("adapter", "adapter"),
        ("checkpoint", "checkpoints/best.ckpt"),
        ("loss curve", "loss_curve.png"),
    ):
        console.print(f"{what:>10}: {runs / 'fit' / path}", highlight=False)


def test_metrics(path: Path) -> dict[str, float]:
    """The last value of every `test_...` column of a `metrics.csv`."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {key: float(value) for row in rows for key, value in row.items() if key.startswith("test_") and value}


def adapter_size(runs: Path) -> int:
    """Bytes of the adapter's weights."""
    return (runs / "fit" / "adapter" / "adapter_model.safetensors").stat().st_size


def base_size(runs: Path) -> int:
    """Bytes of the base model's file, which the adapter's config names."""
    config = json.loads((runs / "fit" / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    return Path(config["base_model_name_or_path"]).stat().st_size


if __name__ == "__main__":
    main()
