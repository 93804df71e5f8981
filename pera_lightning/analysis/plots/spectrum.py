"""The singular values of each layer's weight change against the ranks that bound them."""

from __future__ import annotations

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pera_lightning.analysis.inspection import AdapterInspection, LayerInspection
from pera_lightning.analysis.plots.figure import new_figure
from pera_lightning.analysis.plots.layer_names import places_of

FLOOR = 1e-10
"""Below it, singular values are rounding."""
MOST_COLOURS = 10


def plot_spectrum(found: AdapterInspection) -> Figure:
    """Singular values over the largest one, a line per layer, with the bounds of LoRA (r) and PERA (K, paper Eq. 7)."""
    figure = new_figure(8, 4.8)
    axes = figure.add_subplot(
        yscale="log",
        xlabel="number of the singular value",
        ylabel="singular value of dW / the largest of its layer",
        title=f"Spectrum of the weight change, {len(found.layers)} layers",
    )
    rows = [row for row in found.layers if row.singular_values[0] > 0]
    if rows:
        _lines(axes, rows)
        _median(axes, rows)
    _bounds(axes, found)
    widest = max(row.expanded_rank for row in found.layers)
    axes.set_xlim(0.5, widest * 1.04 + 0.5)
    axes.set_ylim(bottom=max(FLOOR, axes.get_ylim()[0]), top=3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    return figure


def _relative(row: LayerInspection) -> list[float]:
    values = row.singular_values / row.singular_values[0]
    return values[values > FLOOR].tolist()


def _lines(axes: Axes, rows: list[LayerInspection]) -> None:
    kinds = [place.kind for place in places_of([row.layer for row in rows])]
    colours = {kind: f"C{number}" for number, kind in enumerate(dict.fromkeys(kinds))}
    coloured = len(colours) <= MOST_COLOURS
    labelled = set()
    for row, kind in zip(rows, kinds, strict=True):
        values = _relative(row)
        label = kind if coloured else "a layer"
        axes.plot(
            range(1, len(values) + 1),
            values,
            color=colours[kind] if coloured else "tab:blue",
            alpha=0.45,
            linewidth=0.8,
            label="_" if label in labelled else label,
        )
        labelled.add(label)


def _median(axes: Axes, rows: list[LayerInspection]) -> None:
    if len(rows) < 3:
        return
    most = max(len(_relative(row)) for row in rows)
    table = torch.zeros(len(rows), most)
    for line, row in zip(table, rows, strict=True):
        values = _relative(row)
        line[: len(values)] = torch.tensor(values)
    median = table.median(dim=0).values
    axes.plot(range(1, most + 1), median.clamp_min(FLOOR), color="black", linewidth=2, label="median")


def _bounds(axes: Axes, found: AdapterInspection) -> None:
    """Vertical lines at r and K; layers of other ranks are left to the table."""
    pairs = [(row.rank, row.expanded_rank) for row in found.layers]
    rank, expanded = max(set(pairs), key=pairs.count)
    others = "" if len(set(pairs)) == 1 else ", most layers"
    axes.axvline(rank + 0.5, color="tab:red", linestyle="--", label=f"bound of LoRA: r = {rank}{others}")
    if expanded > rank:
        axes.axvline(expanded + 0.5, color="tab:green", linestyle=":", label=f"bound of PERA: K = {expanded}{others}")
