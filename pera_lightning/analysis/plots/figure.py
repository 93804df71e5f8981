"""Figures without a window system, and their files."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pera_lightning.analysis.energy import NO_EFFECT
from pera_lightning.storage.atomic import replacing


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches."""
    # The object interface: pyplot would keep the figure and pick a window system.
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def effect_title(title: str, what: str, share: float) -> str:
    """A title, and a line below it where what the picture shows is too small to matter.

    Args:
        title: The title.
        what: What the picture shows.
        share: Its share of the energy of dW.
    """
    return title if share >= NO_EFFECT else f"{title}\n{what}: {share:.1g} of the energy of dW, no practical effect"


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG beside its place and rename it."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")
