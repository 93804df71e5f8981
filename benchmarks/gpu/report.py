"""The results as `docs/gpu.md` and its picture: the newest run beside the first, and the history."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.pictures import draw
from benchmarks.gpu.plan import rows as planned_rows
from benchmarks.gpu.results import Result, step_ratios
from benchmarks.report import cell, markdown

Cells = list[list[str]]
PICTURE = "gpu_step_time.png"
REFERENCES = 4
"""Rows of the plan's beginning that stand in the history."""
INTRODUCTION = """# PERA on a GPU

Training steps, generated tokens, largest batches and peak memory on one GPU, beside PEFT's LoRA of the same rank and
beside the frozen base alone (the same model with gradients up to its input, and no adapter). Models have the shapes of
Llama-3-8B, Llama-3.2-1B and SmolLM2-135M and random weights; q, k, v, up and down are adapted; bfloat16 autocast, fused
AdamW, dropout 0.05 and order 2 unless said. The three share the weights of one base and take turns; times are medians,
ratios medians of the ratios of one round. *Peak* is what a step allocates at one time beyond the base.

`make bench-gpu` measures all of it again on the GPU at hand, in under four minutes, whatever that reaches there, and
writes this page from all files in [benchmarks/results/gpu](../benchmarks/results/gpu).
"""
NO_KERNELS = """**The kernels have not been measured on a GPU yet.** No result here is of a run that used them:
what they change is not known, neither in time nor in memory. All figures below are of versions without them.
"""
HISTORY = """## History, newest first

Step time of PERA over LoRA's in a few rows. *Launch*: microseconds that Python needs to start one small operation;
where that is long, a GPU waits for its CPU.
"""
COLUMNS: dict[str, tuple[str, dict[str, str]]] = {
    "step": (
        "Training step",
        {
            "base, s": "s_base",
            "LoRA, s": "s_lora",
            "PERA, s": "s_pera",
            "PERA / LoRA": "ratio",
            "LoRA / base": "lora_over_base",
            "PERA / base": "pera_over_base",
            "base, MB": "base_mb",
            "peak LoRA, MB": "peak_mb_lora",
            "peak PERA, MB": "peak_mb_pera",
            "memory PERA / LoRA": "peak_ratio",
        },
    ),
    "compile": (
        "Under torch.compile (the whole model, fullgraph), first layers only",
        {
            "LoRA, s": "s_lora",
            "compiled, s": "s_lora_compiled",
            "PERA, s": "s_pera",
            "compiled PERA, s": "s_pera_compiled",
            "PERA / LoRA": "ratio",
            "both compiled": "ratio_compiled",
            "PERA compiled / eager": "pera_compiled_over_eager",
        },
    ),
    "decode": (
        "One generated token (batch 1, with a cache, eager)",
        {
            "base, ms": "ms_per_token_base",
            "merged, ms": "ms_per_token_merged",
            "LoRA, ms": "ms_per_token_lora",
            "PERA, ms": "ms_per_token_pera",
            "merged / base": "merged_over_base",
            "PERA / LoRA": "pera_over_lora",
        },
    ),
    "batch": (
        "Largest batch",
        {
            "LoRA fits": "largest_lora",
            "fails": "fails_lora",
            "PERA fits": "largest_pera",
            "fails with": "fails_pera",
            "PERA / LoRA": "ratio",
        },
    ),
    "estimate": (
        "Peak of a step beside what `estimate` counts (rows of full length)",
        {
            "rows": "rows",
            "length": "length",
            "counted, MiB": "estimated_mib",
            "measured, MiB": "measured_mib",
            "measured / counted": "measured_over_estimated",
            "estimate says with its rules of thumb, MiB": "needed_mib",
        },
    ),
}
"""Per part, its title and what its columns show. What a row has no figure for is a dash."""


def write(found: Sequence[Result], folder: Path) -> None:
    """`gpu.md` and its picture in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    draw(found, folder / PICTURE)
    (folder / "gpu.md").write_text(page(found), encoding="utf-8")


def page(found: Sequence[Result]) -> str:
    """The text of `gpu.md`, of results whose newest is the first."""
    newest = found[0]
    parts = [INTRODUCTION]
    if not any(result["kernels"] == "used" for result in found):
        parts.append(NO_KERNELS)
    parts += [HISTORY, markdown(history(found)), f"![Step time beside LoRA]({PICTURE})\n"]
    parts.append(f"## The newest run\n\n{newest['date']}: {described(newest)}. Kernels {newest['kernels']}.\n")
    for part, (title, columns) in COLUMNS.items():
        measured = [row for row in newest["rows"] if row["part"] == part and "figures" in row]
        if measured:
            parts.append(f"### {title}\n\n{markdown(_table(measured, columns))}")
    parts.append(f"### What was not measured\n\n{missing(newest)}")
    return "\n".join(parts)


def history(found: Sequence[Result]) -> Cells:
    """A line for each run: what it ran on, and the step time over LoRA's of a few rows."""
    names = [row.name for row in planned_rows()[:REFERENCES]]
    heading = ["date", "commit", "card", "driver", "torch", "launch", "kernels", *names]
    return [heading, *([*_run(result), *(cell(step_ratios(result).get(name)) for name in names)] for result in found)]


def described(result: Result) -> str:
    """Card and versions of a run in one line."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items() if number)
    size = f" ({result['memory_gb']:g} GB)" if result["memory_gb"] else ""
    driver = f", driver {result['driver']}" if result["driver"] else ""
    cuda = f", CUDA {result['cuda']}" if result["cuda"] else ""
    python = f"Python {result['python']}"
    return f"{result['card']}{size}{driver}{cuda}, commit {result['commit']}, {python}, {versions}"


def missing(result: Result) -> str:
    """The rows without figures and why; and the parts that the run did not have at all."""
    lines = [f"- {row['part']}, {row['name']}: {row['reason']}" for row in result["rows"] if "reason" in row]
    there = {row["part"] for row in result["rows"]}
    lines += [f"- {title}: this run did not measure it" for part, (title, _) in COLUMNS.items() if part not in there]
    for part in sorted(there):
        title, columns = COLUMNS[part]
        rows = [row["figures"] for row in result["rows"] if row["part"] == part and "reason" not in row]
        without = [name for name, key in columns.items() if rows and all(row.get(key) is None for row in rows)]
        lines += [f"- {title}, column {name}: no row has a figure" for name in without]
    if result["minutes"] is None:
        lines.append(
            "- This run was made by an earlier program: `make bench-gpu` has more rows and does not repeat it exactly"
        )
    return "\n".join(lines or ["Nothing: every row has its figures."]) + "\n"


def summary(row: dict[str, Any]) -> str:
    """A row's figures in words."""
    _, columns = COLUMNS[row["part"]]
    return ", ".join(f"{name} {cell(row['figures'].get(key))}" for name, key in columns.items())


def _run(result: Result) -> list[str]:
    texts = (result["date"], result["commit"], result["card"], result["driver"], result["versions"]["torch"])
    return [*(text or "-" for text in texts), cell(result["launch_us"]), result["kernels"]]


def _table(rows: Sequence[dict[str, Any]], columns: dict[str, str]) -> Cells:
    return [
        ["", *columns],
        *([row["name"], *(cell(row["figures"].get(key)) for key in columns.values())] for row in rows),
    ]
