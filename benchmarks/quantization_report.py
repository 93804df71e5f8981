"""The results of `benchmarks.quantization` as tables for the screen and as `docs/quantization.md`."""

from __future__ import annotations

import datetime
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

Rows = list[dict[str, Any]]
Cells = list[list[str]]

INTRODUCTION = """# Quantised bases (QPERA)

SmolLM2-135M-Instruct learns the quickstart's task (spoken requests -> JSON tool calls, 840 rows, rank 4, order 2, one
epoch, one seed) over a floating base and over bases quantised by bitsandbytes, with configs/qpera_smollm2_cpu.yaml.
*Loss* is per answer token of the 100 held-out requests, *exact match* the share of them whose generated tool call is
right (standard error 4 points). Bytes are those of all weights in memory, scales of quantised ones included; over a
quantised base embeddings and head are bfloat16 and the norms float32. The factors are float32 everywhere.

`make bench-quantization` measures all of it again and writes this page.
"""
MERGING = """## Merging

The same adapters merged in the three ways of `merge_adapter`. *Weights*: relative error of the merged matrices against
base weight plus adapter. *Logits*: relative error of the logits of 8 held-out requests against those of the unmerged
model. *Loss*: of the merged model on the held-out requests. On a CPU without bf16 instructions the model computes in
float32 and the dequantised merge rounds nothing; merged into bfloat16 it rounds each weight to 8 bits. int8 layers
round their inputs in evaluation, merged ones do not.
"""
LOFTQ = """## LoftQ start

Loss on the held-out requests before any training: of the floating model, of the NF4 model, and of the NF4 model with
`init="loftq"` on all layers but the head. *Gap left* is the share of the distance between the first two that remains.
"""


def show(rows: Rows, loftq: Rows, console: Console) -> None:
    """Print all tables."""
    for title, cells in (
        ("Bases", base_cells(rows)),
        ("Merging", merge_cells(rows)),
        ("LoftQ start", loftq_cells(loftq)),
    ):
        table = Table(title=title)
        for heading in cells[0]:
            table.add_column(heading)
        for line in cells[1:]:
            table.add_row(*line)
        console.print(table)


def write(rows: Rows, loftq: Rows, path: Path) -> None:
    """Write the page."""
    machine = f"{platform.machine()} CPU ({torch.backends.cpu.get_cpu_capability()})"
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "bitsandbytes", "transformers"))
    header = f"{datetime.date.today()}: {machine}, {torch.get_num_threads()} thread(s), {versions}."
    parts = [INTRODUCTION, header + "\n", _markdown(base_cells(rows)), MERGING, _markdown(merge_cells(rows))]
    path.write_text("\n".join([*parts, LOFTQ, _markdown(loftq_cells(loftq))]), encoding="utf-8")


def base_cells(rows: Rows) -> Cells:
    """Kind of base by what training made of it."""
    heading = ["base", "base loss", "adapted loss", "exact match", "base in memory", "adapter"]
    return [
        heading,
        *(
            [
                row["base"],
                f"{row['base_loss']:.3f}",
                f"{row['adapted_loss']:.4f}",
                f"{100 * row['exact_match']:.0f} %",
                f"{row['bytes_base'] / 1e6:.1f} MB ({100 * row['bytes_base'] / rows[0]['bytes_base']:.1f} %)",
                f"{row['bytes_adapter'] / 1e6:.1f} MB",
            ]
            for row in rows
        ),
    ]


def merge_cells(rows: Rows) -> Cells:
    """Kind of base and way of merging by the errors they make."""
    heading = ["base", "merged into", "weights", "logits", "loss", "unmerged loss"]
    return [heading, *(_merge_line(row, way) for row in rows for way in _ways(row))]


def loftq_cells(rows: Rows) -> Cells:
    """Rank and steps by the loss at the start."""
    heading = ["rank", "steps", "float", "nf4", "nf4 with LoftQ", "gap left"]
    return [
        heading,
        *(
            [
                str(row["rank"]),
                str(row["steps"]),
                *(f"{row[name]:.3f}" for name in ("float", "nf4", "nf4_with_loftq")),
                f"{100 * row['gap_left']:.0f} %",
            ]
            for row in rows
        ),
    ]


def _ways(row: dict[str, Any]) -> list[str]:
    return [name.removesuffix("_loss") for name in row if name.endswith("_loss") and f"{name[:-5]}_logit_error" in row]


def _merge_line(row: dict[str, Any], way: str) -> list[str]:
    errors = [f"{row[f'{way}_{name}_error']:.1e}" for name in ("weight", "logit")]
    into = "its own weights" if row["base"] == "float" else way
    return [row["base"], into, *errors, f"{row[f'{way}_loss']:.4f}", f"{row['adapted_loss']:.4f}"]


def _markdown(cells: Cells) -> str:
    lines = [f"| {' | '.join(row)} |" for row in cells]
    lines.insert(1, "|" + "---|" * len(cells[0]))
    return "\n".join(lines) + "\n"
