"""Prints what the quickstart achieved: the test's comparison with the base, sizes, and where the files are.

python examples/tool_calls/report.py runs/quickstart
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Print the result table of the quickstart.")
    parser.add_argument("runs", type=Path, help="folder that holds the runs fit and test")
    runs = parser.parse_args().runs
    with (runs / "test" / "comparison.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["metric"]: (float(row["base"]), float(row["adapted"])) for row in csv.DictReader(file)}
    table = Table(title="Held-out requests: phrasings and values never seen in training")
    for heading in ("", "base", "with the adapter"):
        table.add_column(heading)
    table.add_row("exact match of the tool call", *(f"{100 * value:.1f} %" for value in rows["test_exact_match"]))
    table.add_row("loss per answer token", *(f"{value:.3f}" for value in rows["test_loss"]))
    table.add_row("size on disk", *(f"{size / 1e6:.1f} MB" for size in sizes(runs / "fit" / "adapter")))
    console = Console()
    console.print(table)
    for what, name in (
        ("adapter", "adapter"),
        ("checkpoint", "checkpoints/best.ckpt"),
        ("loss curve", "loss_curve.png"),
    ):
        console.print(f"{what:>10}: {runs / 'fit' / name}", highlight=False, soft_wrap=True)


def sizes(adapter: Path) -> tuple[int, int]:
    """Bytes of the base model's weights, whose folder the adapter's config names, and of the adapter's."""
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    base = Path(config["base_model_name_or_path"])
    weights = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    return weights, (adapter / "adapter_model.safetensors").stat().st_size


if __name__ == "__main__":
    main()
