"""Folding a weight into a frozen layer so that it can be taken out again, to the same bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pera_lightning.bases import expect_base
from pera_lightning.errors import InjectionError

MergeTarget = Literal["auto", "dequantized", "requantized"]
"""What becomes of a quantised base; a dense one is overwritten in any case."""


@dataclass(frozen=True)
class Unmerged:
    """What a layer was before a merge.

    Attributes:
        layer: The layer itself.
        snapshot: What it stored; None if it still does, because a plain layer stands in for it.
    """

    layer: nn.Module
    snapshot: Any

    @torch.no_grad()
    def restore(self) -> nn.Module:
        """The layer, storing what it did before."""
        if not self.stand_in:
            expect_base(self.layer).restore(self.layer, self.snapshot)
        return self.layer

    @property
    def stand_in(self) -> bool:
        """Whether a plain layer stands in for a quantised one now."""
        return self.snapshot is None


@torch.no_grad()
def fold(layer: nn.Module, weight: Tensor, into: MergeTarget) -> tuple[nn.Module, Unmerged]:
    """Make a layer compute with another weight.

    Args:
        layer: A layer that some `Base` accepts.
        weight: Shape (out, in).
        into: For a quantised layer, "dequantized" ("auto"): a plain layer in the dtype that it was quantised from
            stands in for it; "requantized": it is overwritten. A dense layer is overwritten in any case.

    Returns:
        The layer to compute with, and what it takes to undo this.
    """
    check_merge_target(into)
    base = expect_base(layer)
    if base.quantization(layer) is not None and into != "requantized":
        return base.plain(layer, weight, base.dtype(layer)), Unmerged(layer, None)
    unmerged = Unmerged(layer, base.snapshot(layer))
    base.write(layer, weight)
    return layer, unmerged


def check_merge_target(into: str) -> None:
    """Raise InjectionError unless `into` is one of the words of `MergeTarget`."""
    if into not in ("auto", "dequantized", "requantized"):
        raise InjectionError(
            "There is no such way to merge a single layer.",
            got=f"into={into!r}",
            expected="auto, dequantized or requantized",
            fix="use merge_adapter(model, into='original', original=...) to merge onto the weights before quantisation",
        )


def refuse_infinite(adapter: Mapping[str, Tensor]) -> None:
    """Raise InjectionError if an adapter holds a value that is not finite."""
    for name, parameter in adapter.items():
        if not torch.isfinite(parameter).all():
            raise InjectionError(
                "The adapter cannot be merged.",
                got=f"{name} with NaN or infinity",
                expected="finite values",
                fix="go back to an earlier checkpoint; training has diverged",
            )
