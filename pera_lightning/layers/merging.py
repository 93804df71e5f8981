"""Folding a weight into a frozen layer so that it can be taken out again, to the same bits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from pera_lightning.base_layers import base_of, beyond_multiplying, expect_base, replaced_forward
from pera_lightning.errors import InjectionError
from pera_lightning.functional.distributed import is_distributed, whole
from pera_lightning.functional.linear import needs_gradient
from pera_lightning.layers.call_hooks import changes_output

MergeTarget = Literal["auto", "dequantized", "requantized"]
"""What becomes of a quantised base; a dense one is overwritten in any case."""


@dataclass(frozen=True)
class Unmerged:
    """What a layer was before a merge.

    Attributes:
        layer: The layer itself.
        weight: The parameter that it held, as it was; None if it still holds it.
        snapshot: What else it takes to restore what it stored; None if nothing.
    """

    layer: nn.Module
    weight: nn.Parameter | None = None
    snapshot: Any = None

    @torch.no_grad()
    def restore(self) -> nn.Module:
        """The layer, storing what it did before."""
        if self.weight is not None:
            _put_back(self.layer, self.weight)
        if self.snapshot is not None:
            expect_base(self.layer).restore(self.layer, self.snapshot)
        return self.layer

    @property
    def stand_in(self) -> bool:
        """Whether a plain layer stands in for a quantised one now."""
        return self.weight is None and self.snapshot is None

    @property
    def stored(self) -> Tensor:
        """The weight as `restore` will bring it back, or what it will be written to."""
        return storage_of(self.layer) if self.weight is None else self.weight


@torch.no_grad()
def fold(layer: nn.Module, weight: Tensor, into: MergeTarget) -> tuple[nn.Module, Unmerged]:
    """Make a layer compute with another weight, and no other layer that its own may be tied to.

    Args:
        layer: A layer that some `Base` accepts.
        weight: Shape (out, in).
        into: For a quantised layer, "dequantized" ("auto"): a plain layer in the dtype that it was quantised from
            stands in for it; "requantized": its weight is replaced. A dense layer's is replaced in any case.

    Returns:
        The layer to compute with, and what it takes to undo this.

    Raises:
        InjectionError: The layer has come to do more than multiply, or its dtype does not hold the weight.
    """
    check_merge_target(into)
    base = expect_base(layer)
    refuse_more(layer)
    stands_in = base.quantization(layer) is not None and into != "requantized"
    dtype = base.dtype(layer) if stands_in else base.written_dtype(layer)
    refuse_overflow(weight, dtype, lambda: base.weight(layer))
    if stands_in:
        return base.plain(layer, weight, dtype), Unmerged(layer)
    replaced = has_own_weight(layer)
    is_dense = base.quantization(layer) is None
    snapshot = None if replaced and is_dense else base.snapshot(layer)
    before = give_new_weight(layer) if replaced else None
    base.write(layer, weight)
    return layer, Unmerged(layer, before, snapshot)


def storage_of(layer: nn.Module) -> Tensor:
    """The tensor that a layer keeps its weight in; tables of which rows are trained need no `Base` for that."""
    base = base_of(layer)
    return cast("Tensor", layer.weight) if base is None else base.storage(layer)


def has_own_weight(layer: nn.Module) -> bool:
    """Whether a layer's weight may be exchanged; FSDP, tensor parallelism and DeepSpeed hold on to theirs."""
    stored = layer._parameters.get("weight")
    kept = is_distributed(stored) or hasattr(stored, "ds_id") or getattr(layer, "_is_fsdp_managed_module", False)
    return stored is not None and not kept


def give_new_weight(layer: nn.Module) -> nn.Parameter:
    """Have a layer hold a copy of its weight, which nobody else sees when it is written to.

    Returns:
        The parameter from before.
    """
    before = cast("nn.Parameter", layer.weight)
    # No inference tensor, which could not be trained later.
    with torch.inference_mode(mode=False):
        layer.weight = copy.deepcopy(before)
    return before


def _put_back(layer: nn.Module, weight: nn.Parameter) -> None:
    """Undo `give_new_weight`. The parameter follows what happened to the layer meanwhile: device, dtype, training."""
    present = cast("nn.Parameter", layer.weight)
    with torch.inference_mode(mode=False):
        if (weight.device, weight.dtype) != (present.device, present.dtype):
            weight.data = weight.data.to(present.device, present.dtype)
        weight.requires_grad_(present.requires_grad)
        layer.weight = weight


def overwrite(layer: nn.Module, weight: Tensor) -> None:
    """Give a layer another weight (out, in) for good, and no other layer that its own may be tied to."""
    if has_own_weight(layer):
        give_new_weight(layer)
    expect_base(layer).write(layer, weight)


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


def refuse_merging_twice(layer: Any, what: str) -> None:
    """Raise InjectionError if a layer is merged already; `what` of it, for the message."""
    if layer.merged:
        raise InjectionError(
            "What is merged already cannot be merged again.",
            got=f"merge() twice, of {what}",
            expected="one merge()",
            fix="unmerge() first",
        )


def expect_merged(before: Unmerged | None, what: str) -> Unmerged:
    """What there was before a merge; raises InjectionError if nothing is merged."""
    if before is None:
        raise InjectionError(
            "What is not merged cannot be unmerged.",
            got=f"unmerge() of {what}",
            expected="merge() before",
            fix="leave the call out",
        )
    return before


def refuse_training_merged(layer: Any, what: str, trained: Tensor) -> None:
    """Raise InjectionError if a merged layer is to train.

    Args:
        layer: That is called.
        what: Is merged, for the message.
        trained: The parameter that would get no gradient.
    """
    if layer.merged and layer.training and needs_gradient(trained):
        raise InjectionError(
            "What is merged cannot be trained.",
            got=f"a training step of {what}",
            expected="an unmerged layer",
            fix="call unmerge() on the layer first, or model.eval()",
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


def refuse_overflow(weight: Tensor, dtype: torch.dtype, before: Callable[[], Tensor], name: str | None = None) -> None:
    """Raise InjectionError if a merge would store infinities where there were none.

    Args:
        weight: The sum, in float32 or better.
        dtype: What it is to be rounded to.
        before: Gives the weight without the adapter, of the same shape.
        name: Of the layer, for the message.
    """
    if not weight.numel() or fits(weight, dtype):
        return
    # Masks hold infinities of their own.
    if (weight.to(dtype).isfinite() | ~before().isfinite()).all():
        return
    raise InjectionError(
        "The merged weights do not fit their dtype.",
        got=f"values of {'a layer' if name is None else repr(name)} beyond {dtype}",
        expected="a dtype that holds the sum of base and adapter",
        fix="convert the model before the merge: model.to(torch.bfloat16), or float32",
    )


def fits(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether all values of a tensor that is not empty stay finite in a dtype."""
    return all(bool(whole(end.to(dtype)).isfinite()) for end in (weight.amin(), weight.amax()))
