"""How alike the weight changes of two adapters are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pera_lightning.errors import AdapterFileError
from pera_lightning.functional.factor_norms import product_inner, product_norm
from pera_lightning.visible_text import visible

Factors = Callable[[], tuple[Tensor, Tensor]]
"""Makes `(left, right)` of shapes (out, K) and (K, in), whose product is the weight change of a layer."""


@dataclass(frozen=True)
class LayerComparison:
    """Two weight changes dW of one layer, or of all layers taken as one vector.

    Attributes:
        layer: Name of the layer.
        inner: Their inner product, `tr(dW1^T dW2)`.
        first_norm: Frobenius norm of the first; 0 where the adapter does not adapt the layer.
        second_norm: Frobenius norm of the second.
        is_in_first: Whether the first adapts the layer.
        is_in_second: Whether the second does.
    """

    layer: str
    inner: float
    first_norm: float
    second_norm: float
    is_in_first: bool = True
    is_in_second: bool = True

    @property
    def cosine(self) -> float:
        """Cosine of the angle between them; NaN if one of them is zero."""
        norms = self.first_norm * self.second_norm
        return max(-1.0, min(1.0, self.inner / norms)) if norms > 0 else math.nan

    @property
    def norm_ratio(self) -> float:
        """The second norm over the first; NaN if both are zero."""
        if self.first_norm > 0:
            return self.second_norm / self.first_norm
        return math.inf if self.second_norm > 0 else math.nan


@dataclass(frozen=True)
class AdapterComparison:
    """Two adapters beside each other; as a string, a table, with a row for all layers that only one of them adapts.

    Attributes:
        first: Name of the first adapter.
        second: Name of the second.
        layers: Every layer that one of them adapts. Modules trained whole, token rows and biases are left out.
    """

    first: str
    second: str
    layers: tuple[LayerComparison, ...]

    @property
    def total(self) -> LayerComparison:
        """All layers together."""
        return _sum("all layers", self.layers)

    def __str__(self) -> str:
        head = ("layer", "cosine", f"|{visible(self.first)}|", f"|{visible(self.second)}|", "ratio")
        both = [row for row in self.layers if row.is_in_first and row.is_in_second]
        alone = (
            _together(name, rows)
            for name, rows in (
                (self.first, [row for row in self.layers if not row.is_in_second]),
                (self.second, [row for row in self.layers if not row.is_in_first]),
            )
            if rows
        )
        rows = [head, *(_cells(row) for row in (*both, *alone, self.total))]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
            for row in rows
        )


def _together(name: str, rows: Sequence[LayerComparison]) -> LayerComparison:
    """One row for layers that only the adapter of this name adapts."""
    what = rows[0].layer if len(rows) == 1 else f"{len(rows)} layers"
    return _sum(f"{what} (only in {name})", rows)


def _sum(name: str, rows: Sequence[LayerComparison]) -> LayerComparison:
    return LayerComparison(
        name,
        sum(row.inner for row in rows),
        math.hypot(*(row.first_norm for row in rows)),
        math.hypot(*(row.second_norm for row in rows)),
    )


def _cells(row: LayerComparison) -> tuple[str, ...]:
    cosine, ratio = f"{row.cosine:.3f}", f"{row.norm_ratio:.3g}"
    return (
        visible(row.layer),
        cosine.replace("nan", "-"),
        f"{row.first_norm:.3g}",
        f"{row.second_norm:.3g}",
        ratio.replace("nan", "-"),
    )


@torch.no_grad()
def compare_layers(
    names: tuple[str, str], first: Mapping[str, Factors], second: Mapping[str, Factors]
) -> AdapterComparison:
    """Compare two adapters layer by layer, from their factors; no (out, in) matrix is built.

    Args:
        names: What the adapters are called.
        first: Factors of the first, by layer; made when their turn comes.
        second: Of the second.

    Raises:
        AdapterFileError: A layer of the same name is of another size in the second.
    """
    every = dict.fromkeys([*first, *second])
    return AdapterComparison(*names, tuple(_compare(name, first.get(name), second.get(name)) for name in every))


def _compare(name: str, first: Factors | None, second: Factors | None) -> LayerComparison:
    one, other = (None if make is None else make() for make in (first, second))
    sizes = {(left.shape[0], right.shape[1]) for left, right in filter(None, (one, other))}
    if len(sizes) > 1:
        raise AdapterFileError(
            "The adapters are of different models.",
            got=f"layer {name!r} of sizes (out, in) {' and '.join(map(str, sorted(sizes)))}",
            expected="adapters of one base model",
            fix="compare adapters that were trained on the same model",
        )
    inner = 0.0 if one is None or other is None else product_inner(*one, *other).item()
    first_norm, second_norm = (0.0 if factors is None else product_norm(*factors).item() for factors in (one, other))
    return LayerComparison(
        name, inner, first_norm, second_norm, is_in_first=one is not None, is_in_second=other is not None
    )
