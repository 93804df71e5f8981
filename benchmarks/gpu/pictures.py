"""The picture of `docs/gpu.md`: the time of a step beside LoRA's, in the first run and in the newest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.gpu.results import Result, step_ratios

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BEFORE, AFTER, LORA = "tab:orange", "tab:blue", "black"
INCHES_PER_ROW = 0.27


def draw(found: Sequence[Result], path: Path) -> None:
    """A line for each row: a point for the first run, and one for the newest if it is another."""
    points = pairs_of(found)
    figure, axes = plt.subplots(figsize=(10, 1.4 + INCHES_PER_ROW * len(points)), layout="constrained")
    labels = [run_label(result) for result in ([found[-1]] if len(found) == 1 else [found[-1], found[0]])]
    for place, pair in enumerate(points.values()):
        _draw_row(axes, place, pair)
    for color, label in zip((BEFORE, AFTER), labels, strict=False):
        axes.plot([], [], "o", color=color, label=label)
    axes.axvline(1, color=LORA, linewidth=1.2, label="LoRA (PEFT)")
    axes.set_yticks(range(len(points)), list(points), fontsize=9)
    axes.invert_yaxis()
    axes.set(title="Time of a training step over LoRA's of the same rank", xlabel="PERA / LoRA (left is faster)")
    lowest, highest = axes.get_xlim()
    # Room for the figures at the ends.
    axes.set_xlim(min(0.9, lowest - 0.1), highest + 0.1)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def pairs_of(found: Sequence[Result]) -> dict[str, tuple[float | None, float | None]]:
    """By a row's name, its ratio in the first run and in the newest, None where it has none; grouped by model."""
    first, newest = (step_ratios(result) for result in (found[-1], found[0]))
    names = sorted({**first, **newest}, key=lambda name: name.partition(",")[0])
    return {name: (first.get(name), newest.get(name) if len(found) > 1 else None) for name in names}


def run_label(result: Result) -> str:
    """Date, card, commit, and whether the kernels computed."""
    kernels = "with kernels" if result["kernels"] == "used" else "no kernels"
    return f"{result['date']}, {result['card']}, {result['commit']}, {kernels}"


def _draw_row(axes: Any, place: int, pair: tuple[float | None, float | None]) -> None:
    known = [value for value in pair if value is not None]
    axes.plot([min(known), max(known)], [place, place], color="lightgray", linewidth=3, zorder=1)
    for value, color in zip(pair, (BEFORE, AFTER), strict=True):
        if value is not None:
            axes.plot(value, place, "o", color=color, zorder=2)
            # Outside of the two points.
            is_left = len(known) > 1 and value == min(known)
            shift, side = (-7, "right") if is_left else (7, "left")
            options = {"textcoords": "offset points", "ha": side, "va": "center", "fontsize": 8}
            options["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
            axes.annotate(f"{value:.2f}", (value, place), (shift, 0), **options)
