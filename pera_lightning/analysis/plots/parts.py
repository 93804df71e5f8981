"""How large the weight change of each layer is, and how much of it each part holds."""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import methodcaller

from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from pera_lightning.analysis.inspection import AdapterInspection, LayerInspection
from pera_lightning.analysis.plots.figure import effect_title, new_figure
from pera_lightning.analysis.plots.layer_names import Place, places_of

DECADES = 8
"""Shares further below the largest one have the colour of the lowest."""
MOST_LABELS = 40


def plot_parts(found: AdapterInspection) -> Figure:
    """Heat maps over blocks and kinds of layers: the norm of dW, and the energy share of each part but the linear one.

    The shares have one logarithmic scale: the linear part has the rest, and often nearly all.
    """
    places = places_of([row.layer for row in found.layers])
    kinds = list(dict.fromkeys(place.kind for place in places))
    blocks = list(dict.fromkeys(place.block for place in places))
    parts = [part for part in found.parts if part != "linear"]
    height = max(1.3, min(9.0, 0.4 + 0.24 * len(kinds)))
    figure = new_figure(max(7.0, min(16.0, 3.2 + 0.3 * len(blocks))), 0.9 + (height + 0.55) * (1 + len(parts)))
    panels = figure.subplots(1 + len(parts), squeeze=False, sharex=True)[:, 0]
    title = "Weight change dW by layer, and energy of its parts"
    figure.suptitle(effect_title(title, "all but the linear part", found.polynomial_share) if parts else title)

    def draw(axes: Axes, value: Callable[[LayerInspection], float], norm: LogNorm | None, title: str) -> None:
        cells = _cells(found, places, kinds, blocks, value, positive=norm is not None)
        _heat_map(figure, axes, cells, kinds, norm, title)

    draw(panels[0], lambda row: row.norm, None, "Frobenius norm of dW")
    shares = [row.share(part) for row in found.layers for part in parts]
    scale = _scale(shares)
    for axes, part in zip(panels[1:], parts, strict=True):
        title = f"share of the energy in the {part} part (all layers: {found.share(part):.2g})"
        draw(axes, methodcaller("share", part), scale, title)
    panels[-1].set_xlabel("block" if blocks != [""] else "")
    step = math.ceil(len(blocks) / MOST_LABELS)
    labels = blocks if blocks == [""] else [block or "others" for block in blocks]
    panels[-1].set_xticks(range(0, len(blocks), step), labels[::step])
    return figure


def _scale(shares: list[float]) -> LogNorm:
    present = [share for share in shares if share > 0]
    if not present:
        return LogNorm(0.1, 1.0)
    top = max(present)
    return LogNorm(max(min(present), top * 10**-DECADES, 1e-30) * 0.999, top)


def _cells(
    found: AdapterInspection,
    places: list[Place],
    kinds: list[str],
    blocks: list[str],
    value: Callable[[LayerInspection], float],
    *,
    positive: bool,
) -> list[list[float]]:
    cells = [[math.nan] * len(blocks) for _ in kinds]
    for row, place in zip(found.layers, places, strict=True):
        number = value(row)
        cells[kinds.index(place.kind)][blocks.index(place.block)] = number if number > 0 or not positive else math.nan
    return cells


def _heat_map(
    figure: Figure, axes: Axes, cells: list[list[float]], kinds: list[str], norm: LogNorm | None, title: str
) -> None:
    axes.set_title(title, fontsize="medium", loc="left")
    axes.set_facecolor("lightgrey")
    limits = {"norm": norm} if norm is not None else {"vmin": 0}
    image = axes.imshow(cells, aspect="auto", cmap="viridis", interpolation="nearest", **limits)
    step = math.ceil(len(kinds) / MOST_LABELS)
    axes.set_yticks(range(0, len(kinds), step), kinds[::step], fontsize="small")
    figure.colorbar(image, ax=axes, pad=0.01)
