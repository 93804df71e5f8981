"""A picture of a run's loss."""

from __future__ import annotations

import csv
from pathlib import Path

from pera_lightning.storage.atomic import replacing
from pera_lightning.storage.remote import Place

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
    if steps:
        axes.plot(steps, losses, color="tab:blue", alpha=0.3, label="training, single steps")
        axes.plot(steps, _running_mean(losses), color="tab:blue", label="training, running mean")
    steps, losses = _column(metrics, "val_loss")
    if steps:
        axes.plot(steps, losses, color="tab:orange", marker="o", label="validation")
    axes.set_ylim(bottom=0)
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
    rows = [row for row in csv.DictReader(metrics.splitlines()) if row.get(name)]
    return [int(row["step"]) for row in rows], [float(row[name]) for row in rows]


def _running_mean(values: list[float]) -> list[float]:
    # Over about a tenth of the run, so that a short run is not smoothed into its past.
    past = min(0.95, max(0.0, 1 - 10 / len(values)))
    mean, weight, means = 0.0, 0.0, []
    for value in values:
        mean = past * mean + (1 - past) * value
        # Without this division the mean would start near zero.
        weight = past * weight + (1 - past)
        means.append(mean / weight)
    return means
