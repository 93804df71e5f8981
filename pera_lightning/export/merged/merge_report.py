"""What a merge did to the weights of a model, and to its outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

Norms = tuple[float, float]
"""Squared Frobenius norms of what rounding changed, and of the exact weight."""


def rounding_norms(rounded: Tensor, exact: Tensor) -> Norms:
    """The norms of a weight, or of a part of one, before and after it was rounded to its dtype."""
    return (rounded - exact).square().sum().item(), exact.square().sum().item()


@dataclass(frozen=True)
class MergeReport:
    """What a merge did to the weights and to the outputs.

    Attributes:
        into: The way of merging; "dense" if no base was quantised.
        layers: Number of merged layers, those with trained token rows included.
        weight_error: Relative error of the merged weights against base weight plus adapter, all layers together
            (Frobenius norm).
        worst_error: The same of the layer where it is largest.
        worst_layer: Name of that layer.
        logit_error: Relative error of the model's outputs on the probe, None without a probe.
    """

    into: str
    layers: int
    weight_error: float
    worst_error: float
    worst_layer: str
    logit_error: float | None = None

    @classmethod
    def of(cls, errors: Mapping[str, Norms], into: str, logit_error: float | None = None) -> MergeReport:
        """The report for the norms of each layer."""
        relative = {name: (error / norm) ** 0.5 if norm else 0.0 for name, (error, norm) in errors.items()}
        worst = max(relative, key=relative.__getitem__)
        error, norm = (sum(column) for column in zip(*errors.values(), strict=True))
        return cls(into, len(errors), (error / norm) ** 0.5 if norm else 0.0, relative[worst], worst, logit_error)

    def __str__(self) -> str:
        logits = "" if self.logit_error is None else f"; of the outputs on the probe {self.logit_error:.1e}"
        return (
            f"merged {self.layers} layers ({self.into}); relative error of the weights {self.weight_error:.1e}, "
            f"at most {self.worst_error:.1e} ({self.worst_layer}){logits}"
        )
