"""Folding a weight into a frozen layer so that it can be taken out again, to the same bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pera_lightning.bases import beyond_multiplying, expect_base, replaced_forward
from pera_lightning.errors import InjectionError
from pera_lightning.layers.call_hooks import changes_output

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

    Raises:
        InjectionError: The layer has come to do more than multiply.
    """
    check_merge_target(into)
    base = expect_base(layer)
    refuse_more(layer)
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


def refuse_more(base_layer: nn.Module, around: nn.Module | None = None, name: str | None = None) -> None:
    """Raise InjectionError if an adapted layer has come to do more than multiply since the injection.

    Args:
        base_layer: The layer below the adapter.
        around: The adapted layer, if it gives way to the base.
        name: Its name, for the message.
    """
    what = beyond_multiplying(base_layer)
    if what is None and around is not None:
        what = replaced_forward(around)
    if what is None and changes_output(base_layer):
        what = "has forward hooks on its base_layer, which see the base alone"
    if what is not None:
        raise InjectionError(
            "An adapted layer has come to do more than multiply: merged it would give something else than now.",
            got=f"{'a layer' if name is None else repr(name)} over {type(base_layer).__name__}, which {what}",
            expected="the layer as it was when the adapter came, perhaps with hooks of its own, which move to the "
            "merged layer",
            fix="undo it before the merge (handle.remove() for a hook), or set hooks on the adapted layer and not on "
            "its base_layer",
        )


def refuse_other_values(layer: nn.Module, state_dict: Mapping[str, Any], prefix: str) -> None:
    """Raise InjectionError if a state dict would give a merged layer other values.

    It would go on answering with the factors that were merged, and `unmerge` would bring the weight of before back.

    Args:
        layer: The merged layer, as it is.
        state_dict: What is to be loaded.
        prefix: What the layer's names begin with there.
    """
    for name, own in layer.named_parameters():
        given = state_dict.get(prefix + name)
        # What does not fit is an error of torch's own.
        if not isinstance(given, Tensor) or given.shape != own.shape:
            continue
        if not torch.equal(given.to(own.device, own.dtype), own):
            raise InjectionError(
                "A merged layer cannot be given other values.",
                got=f"load_state_dict with another {prefix}{name}",
                expected="the values that it holds now, or an unmerged layer",
                fix="call unmerge() on the adapted layers, load, and merge() again",
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
