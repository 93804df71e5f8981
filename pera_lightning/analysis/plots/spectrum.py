"""The singular values of each layer's weight change against the ranks that bound them."""

from __future__ import annotations

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pera_lightning.analysis.inspection import AdapterInspection, LayerInspection
from pera_lightning.analysis.plots.figure import effect_title, new_figure
from pera_lightning.analysis.plots.layer_names import places_of

FLOOR = 1e-10
"""Below it, singular values are rounding."""
MOST_KINDS = 10


def plot_spectrum(found: AdapterInspection) -> Figure:
    """Singular values over the largest one, with the bounds of LoRA (r) and PERA (K, paper Eq. 7).

    A thick line for each kind of layer, the median of its blocks, among thin ones for the single layers.
    """
    figure = new_figure(9, 5)
    title = f"Spectrum of the weight change, {len(found.layers)} layers"
    axes = figure.add_subplot(
        yscale="log",
        xlabel="number of the singular value",
        ylabel="singular value of dW / the largest of its layer",
        title=effect_title(title, "what is beyond r", found.beyond_rank) if found.config.order > 1 else title,
    )
    kinds = _kinds([row for row in found.layers if row.singular_values[0] > 0])
    named = sorted(kinds, key=lambda kind: sum(row.norm**2 for row in kinds[kind]), reverse=True)[:MOST_KINDS]
    for kind, rows in kinds.items():
        colour = f"C{named.index(kind)}" if kind in named else "grey"
        for row in rows:
            values = _relative(row)
            axes.plot(range(1, len(values) + 1), values, color=colour, alpha=0.15, linewidth=0.7)
    for kind, marker in zip(named, MARKERS, strict=False):
        _median(axes, kind, kinds[kind], f"C{named.index(kind)}", marker)
    if len(kinds) > len(named):
        axes.plot([], [], color="grey", linewidth=0.7, label=f"{len(kinds) - len(named)} kinds with less energy")
    _bounds(axes, found)
    widest = max(row.expanded_rank for row in found.layers)
    axes.set_xlim(0.5, widest * 1.04 + 0.5)
    axes.set_ylim(bottom=max(FLOOR, axes.get_ylim()[0]), top=3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    return figure


MARKERS = "osD^v<>PX*"
"""One for each named kind: colours alone do not tell lines apart for everybody, or in print."""


def _relative(row: LayerInspection) -> list[float]:
    values = row.singular_values / row.singular_values[0]
    return values[values > FLOOR].tolist()


def _kinds(rows: list[LayerInspection]) -> dict[str, list[LayerInspection]]:
    """The layers of each kind, in the order of the model."""
    kinds: dict[str, list[LayerInspection]] = {}
    for row, place in zip(rows, places_of([row.layer for row in rows]), strict=True):
        kinds.setdefault(place.kind, []).append(row)
    return kinds


def _median(axes: Axes, kind: str, rows: list[LayerInspection], colour: str, marker: str) -> None:
    table = torch.zeros(len(rows), max(len(_relative(row)) for row in rows))
    for line, row in zip(table, rows, strict=True):
        values = _relative(row)
        line[: len(values)] = torch.tensor(values)
    median = table.quantile(0.5, dim=0)
    label = kind if len(rows) == 1 else f"{kind}, median of {len(rows)}"
    places = range(1, len(median) + 1)
    step = max(1, len(median) // 15)
    axes.plot(
        places,
        median.clamp_min(FLOOR),
        color=colour,
        linewidth=1.8,
        marker=marker,
        markersize=4,
        markevery=step,
        label=label,
    )


def _bounds(axes: Axes, found: AdapterInspection) -> None:
    """Vertical lines at r and K; layers of other ranks are left to the table."""
    pairs = [(row.rank, row.expanded_rank) for row in found.layers]
    rank, expanded = max(set(pairs), key=pairs.count)
    others = "" if len(set(pairs)) == 1 else ", most layers"
    axes.axvline(rank + 0.5, color="tab:red", linestyle="--", label=f"bound of LoRA: r = {rank}{others}")
    if expanded > rank:
        axes.axvline(expanded + 0.5, color="tab:green", linestyle=":", label=f"bound of PERA: K = {expanded}{others}")
