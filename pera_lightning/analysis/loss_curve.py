"""A picture of a run's loss."""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pera_lightning.storage.atomic import replacing
from pera_lightning.storage.remote import Place

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FALLS_FAR = 10
"""Where the largest mean is more than this many times the smallest one, the axis is logarithmic."""
_SOFTWARE = "pera_lightning"


def plot_loss_curve(metrics: str, picture: Path) -> Path:
    """Draw training and validation loss over optimizer steps.

    Args:
        metrics: What is in the `metrics.csv` of a CSVLogger, with the columns `step` and `train_loss` or `val_loss`.
        picture: PNG file to write.

    Returns:
        `picture`.
    """
    from pera_lightning.analysis.plots.figure import new_figure

    figure = new_figure(7, 4)
    axes = figure.add_subplot(xlabel="optimizer step", ylabel="loss", title="Loss while training")
    axes.locator_params(axis="x", integer=True)
    steps, losses = _column(metrics, "train_loss")
    if not steps:
        axes.set_title("No training loss was logged: lower log_every_n_steps (50 by default)")
    means = smoothed(losses)
    if steps:
        # Of very few points a line shows nothing.
        marker = "." if len(steps) < 20 else None
        axes.plot(steps, losses, color="tab:blue", alpha=0.3, marker=marker, label="training, single steps")
        axes.plot(steps, means, color="tab:blue", label="training, mean around a step")
    steps, validated = _column(metrics, "val_loss")
    if steps:
        axes.plot(steps, validated, color="tab:orange", marker="o", label="validation")
    _fit_axis(axes, losses, [*means, *validated])
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    with replacing(picture) as temporary:
        figure.savefig(temporary, dpi=150, format="png", metadata={"Software": _SOFTWARE})
    return picture


def is_loss_curve(picture: Place) -> bool:
    """Whether a file is a picture that `plot_loss_curve` wrote."""
    # As PNG files say by what they were written, before the picture itself.
    return f"Software\0{_SOFTWARE}".encode() in picture.read_bytes()[:500]


def _column(metrics: str, name: str) -> tuple[list[int], list[float]]:
    # Lightning counts steps from 0 in its logs; elsewhere the first one is step 1.
    found = [(int(row["step"]) + 1, float(row[name])) for row in csv.DictReader(metrics.splitlines()) if row.get(name)]
    finite = [(step, value) for step, value in found if math.isfinite(value)]
    return [step for step, _ in finite], [value for _, value in finite]


def smoothed(values: Sequence[float]) -> list[float]:
    """Means over about a tenth of the run around each value; the first is the first value itself.

    A mean over the past alone would lag: where the loss falls it would show the loss of some steps ago.
    """
    sums = [0.0, *itertools.accumulate(values)]
    means = []
    for place in range(len(values)):
        # As many values before as after: at the start a mean of later ones would be below the first.
        reach = min(place, len(values) // 20)
        begin, end = place - reach, min(place + reach + 1, len(values))
        means.append((sums[end] - sums[begin]) / (end - begin))
    return means


def _fit_axis(axes: Axes, single: Sequence[float], curves: Sequence[float]) -> None:
    """Show the curves whole and all but the rarest single steps, on a logarithmic axis where the loss falls far."""
    if not curves:
        return
    ranked, rare = sorted(single), len(single) // 50
    low, high = min([*curves, *ranked[rare : rare + 1]]), max([*curves, *ranked[len(ranked) - rare - 1 :][:1]])
    if low > 0 and max(curves) > FALLS_FAR * min(curves):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        margin = (high / low) ** 0.05
        axes.set_ylim(low / margin, high * margin)
    elif high > low:
        margin = 0.05 * (high - low)
        axes.set_ylim(low - margin, high + margin)
