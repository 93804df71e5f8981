"""The results as tables for the screen, as `docs/cost.md`, and as a picture."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import matplotlib
from rich.console import Console
from rich.table import Table

from benchmarks.bars import Rows, bars

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TITLES = {
    "train_step": "Training step of SmolLM2-135M (float32, 4 x 64 tokens, q, k, v, up, down adapted)",
    "decode": "One generated token of SmolLM2-135M",
    "big_layer": "One layer 4096 -> 14336 (Llama-3-8B up), 2048 tokens, forward and backward",
    "rank": "Cost against rank: one layer 576 -> 576, 256 tokens",
    "order": "Cost against order: the same layer, rank 8",
    "tokens": "Cost against the number of tokens: the same layer, rank 16",
    "shape": "Cost against shape: layers of SmolLM2 and Llama-3-8B, rank 16, 256 tokens",
    "compile": "Under torch.compile (fullgraph): the training step with the first 6 of 30 layers",
    "operations": "Operations that an adapted layer starts in a step: sum (forward + backward)",
}
INTRODUCTION = """# What PERA costs

Everything is measured beside PEFT's LoRA of the same rank on the same base, with dropout 0.05 unless said. *Naive* is
PERA written down from the paper's equations (`benchmarks/naive_pera.py`), *floor* the ratio of multiply-adds that no
implementation of the factored form can avoid (`benchmarks/floor.py`). Times are medians of ratios of runs that take
turns in one process; a ratio below 1 is faster than LoRA, one below the floor says that LoRA is above its
own. Bytes are exact: *saved* counts the distinct storages that
autograd keeps for the backward pass, *share* what the adapter adds to the frozen base's {base:.0f} MB over what LoRA
adds. Operations are counted (`benchmarks/operations.py`): where a GPU waits for its CPU, they decide the time.

`make bench` measures all of it again and writes this page.
"""


def show(results: Rows, console: Console) -> None:
    """Print every result as a table, and the figures to reach where they are complete."""
    for name, rows in results.items():
        _print(console, TITLES[name], _cells(rows))
    if {"train_step", "decode", "big_layer"} <= results.keys():
        _print(console, "Figures to reach", _bar_cells(results))


def write(results: Rows, header: str, folder: Path) -> None:
    """`cost.md` and `cost_against_rank.png` in the folder."""
    folder.mkdir(exist_ok=True)
    _draw(results, folder / "cost_against_rank.png")
    base = results["train_step"][0]["saved_mb_base"]
    parts = [INTRODUCTION.format(base=base), f"{datetime.date.today()}: {header}.\n", markdown(_bar_cells(results))]
    parts.append("![Cost against rank](cost_against_rank.png)\n")
    parts += [f"## {TITLES[name]}\n\n{markdown(_cells(rows))}" for name, rows in results.items()]
    (folder / "cost.md").write_text("\n".join(parts), encoding="utf-8")


def _bar_cells(results: Rows) -> list[list[str]]:
    heading = ["figure", "naive", "floor", "to reach", "measured", ""]
    rows = [[bar.name, *map(cell, (bar.naive, bar.floor, bar.bar, bar.measured)), bar.verdict] for bar in bars(results)]
    return [heading, *rows]


def _cells(rows: list[dict[str, Any]]) -> list[list[str]]:
    return [[key.replace("_", " ") for key in rows[0]], *([cell(value) for value in row.values()] for row in rows)]


def cell(value: Any) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _print(console: Console, title: str, cells: list[list[str]]) -> None:
    table = Table(title=title)
    for heading in cells[0]:
        table.add_column(heading, justify="right")
    for row in cells[1:]:
        table.add_row(*row)
    console.print(table)


def markdown(cells: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], f"|{'---|' * len(cells[0])}", *lines[1:]]) + "\n"


def _draw(results: Rows, path: Path) -> None:
    """Step time and saved bytes of the model, and the time of a single layer, against rank."""
    figure, (step, saved, layer) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    rows = [row for row in results["train_step"] if row["dropout"] == 0.05]
    for axes, part, title in (
        (step, "step_time", "time of a training step"),
        (saved, "saved_share", "saved for backward"),
    ):
        _lines(axes, rows, {"naive": f"{part}_naive", "PERA": f"{part}_pera"}, f"SmolLM2-135M: {title}")
    step.plot([row["rank"] for row in rows], [row["step_time_floor"] for row in rows], ":", color="gray", label="floor")
    single = {"naive": "time_naive", "PERA": "time_pera", "floor": "floor"}
    _lines(layer, results["rank"], single, "layer 576 -> 576, 256 tokens: time")
    for axes in (step, saved, layer):
        axes.axhline(1, color="black", linewidth=1, label="LoRA (PEFT)")
        axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _lines(axes: Any, rows: list[dict[str, Any]], columns: dict[str, str], title: str) -> None:
    ranks = [row["rank"] for row in rows]
    styles = {"naive": ("--", "tab:orange"), "PERA": ("-", "tab:blue"), "floor": (":", "gray")}
    for label, column in columns.items():
        style, color = styles[label]
        axes.plot(ranks, [row[column] for row in rows], style, color=color, marker="o", label=label)
    axes.set(title=title, xlabel="rank", ylabel="over LoRA of the same rank", xscale="log", yscale="log")
    axes.set_xticks(ranks, [str(rank) for rank in ranks])
    axes.set_yticks([0.5, 1, 2, 4, 8], ["0.5", "1", "2", "4", "8"])
    axes.minorticks_off()
