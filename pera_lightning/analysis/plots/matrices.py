"""Matrices over pairs: coefficients h and interaction strengths of rank components, interactions of hidden entries."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from torch import Tensor

from pera_lightning.analysis.inspection import AdapterInspection, LayerInspection
from pera_lightning.analysis.interactions import Interactions
from pera_lightning.analysis.plots.figure import effect_title, new_figure
from pera_lightning.analysis.plots.layer_names import places_of
from pera_lightning.functional import monomials

MOST_LAYERS = 12
DECADES = 4


def plot_coefficients(found: AdapterInspection, most: int = MOST_LAYERS) -> Figure | None:
    """The coefficients of degree 2 (h times `coefficient_scale`) as upper triangles, one colour scale for all.

    Args:
        found: The adapter.
        most: Layers to draw: those with the largest share of polynomial energy, in the order of the model.

    Returns:
        None if no layer has coefficients.
    """
    rows = _strongest([row for row in found.layers if row.coefficients is not None], most)
    if not rows:
        return None
    matrices = {row.layer: _triangle(row, found) for row in rows}
    largest = max(matrix[~matrix.isnan()].abs().max().item() for matrix in matrices.values()) or 1.0
    higher = ", degree 2 only" if found.config.order > 2 else ""
    title = (
        f"Coefficients h{higher} ({_chosen(len(rows), len(found.layers))} the most polynomial energy); "
        f"one scale, largest |h| {largest:.2g}"
    )
    title = effect_title(title, "products of components, all layers", found.polynomial_share)
    return _panels(matrices, Normalize(-largest, largest), "RdBu_r", title, "h of (i, j)")


def plot_interactions(strengths: Interactions, most: int = MOST_LAYERS) -> Figure | None:
    """The matrices of `interaction_strength` on one logarithmic colour scale.

    Args:
        strengths: As it gives them.
        most: Layers to draw: those with the largest entry, in the order of the model.

    Returns:
        None if no layer has a product that takes part.
    """
    used = {layer: matrix for layer, matrix in strengths.items() if matrix.max() > 0}
    if not used:
        return None
    ranked = sorted(used, key=lambda layer: used[layer].max().item(), reverse=True)[:most]
    chosen = {layer: torch.where(matrix > 0, matrix, math.nan) for layer, matrix in used.items() if layer in ranked}
    top = max(matrix.max().item() for matrix in used.values())
    bottom = min(matrix[matrix > 0].min().item() for matrix in chosen.values())
    scale = LogNorm(max(bottom, top * 10**-DECADES) * 0.999, top)
    title = f"Interaction strength of rank components ({_chosen(len(chosen), len(strengths))} the largest entries)"
    title = effect_title(title, "the largest of them", top**2)
    label = "|second derivative| / |dW x|, means over tokens"
    return _panels(chosen, scale, "viridis", title, label)


def plot_hidden_interactions(found: Mapping[str, Tensor], about: str) -> Figure:
    """The matrices of `hidden_interactions` side by side on one linear colour scale, as the paper's Fig. 5.

    Args:
        found: What was measured -> its matrix.
        about: Which state and output they are about, for the title.
    """
    top = max(matrix.max().item() for matrix in found.values()) or 1.0
    figure = new_figure(3.2 * len(found) + 1.0, 4.0)
    figure.suptitle(f"Interaction strength of the entries of a hidden state (paper Eq. 12)\n{about}", fontsize="medium")
    for axes, (name, matrix) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        image = axes.imshow(matrix.float().numpy(), cmap="viridis", norm=Normalize(0, top), interpolation="nearest")
        axes.set_title(f"{name}\nmean {matrix.mean():.3g}", fontsize="small")
        axes.set_xlabel("entry j", fontsize="x-small")
        axes.set_ylabel("entry i", fontsize="x-small")
        axes.tick_params(labelsize="x-small")
    figure.colorbar(image, ax=figure.axes, label="mean |second derivative|", shrink=0.8)
    return figure


def _chosen(count: int, total: int) -> str:
    return f"{count} of {total} layers: those with" if count < total else f"{total} layers, among them"


def _strongest(rows: Sequence[LayerInspection], most: int) -> list[LayerInspection]:
    ranked = sorted(rows, key=lambda row: row.polynomial_energy, reverse=True)[:most]
    return [row for row in rows if row in ranked]


def _triangle(row: LayerInspection, found: AdapterInspection) -> Tensor:
    """The coefficients of degree 2 at (i, j), i <= j; NaN where there is none."""
    assert row.coefficients is not None
    matrix = torch.full((row.rank, row.rank), math.nan)
    for indices, value in zip(monomials(row.rank, 2, found.config.terms), row.coefficients.tolist(), strict=False):
        matrix[indices] = value
    return matrix


def _panels(matrices: Mapping[str, Tensor], norm: Normalize, colours: str, title: str, label: str) -> Figure:
    across = min(4, len(matrices))
    down = math.ceil(len(matrices) / across)
    figure = new_figure(max(7.5, 2.3 * across + 1.4), 2.35 * down + 0.8)
    figure.suptitle(title, fontsize="medium")
    panels = figure.subplots(down, across, squeeze=False).flat
    image = None
    for axes, (layer, matrix), place in zip(panels, matrices.items(), places_of(list(matrices)), strict=False):
        axes.set_facecolor("lightgrey")
        image = axes.imshow(matrix.numpy(), cmap=colours, norm=norm, interpolation="nearest")
        axes.set_title(str(place) if place.block else layer, fontsize="small")
        step = math.ceil(len(matrix) / 8)
        ticks = range(0, len(matrix), step)
        axes.set_xticks(ticks, [str(tick + 1) for tick in ticks], fontsize="x-small")
        axes.set_yticks(ticks, [str(tick + 1) for tick in ticks], fontsize="x-small")
        axes.set_xlabel("component j", fontsize="x-small")
        axes.set_ylabel("component i", fontsize="x-small")
    for axes in list(figure.axes)[len(matrices) :]:
        axes.set_axis_off()
    assert image is not None
    figure.colorbar(image, ax=figure.axes, label=label)
    return figure
