"""Plain linear layers: `nn.Linear` and its subclasses with an ordinary floating weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from pera_lightning.base_layers.base import Base
from pera_lightning.errors import InjectionError

TORCHS_OWN = ("torch.distributed.", "torch._subclasses.", "torch.nn.")
"""Where torch has classes of tensors that compute as their values."""


class DenseBase(Base):
    """`nn.Linear`: the weight is stored as (out, in)."""

    name = "torch.nn.Linear"

    def accepts(self, layer: nn.Module) -> bool:
        """Linear layers whose stored weight is the matrix itself; quantised subclasses pack it otherwise."""
        if not isinstance(layer, nn.Linear):
            return False
        weight = _stored_weight(layer)
        if weight is None or isinstance(weight, nn.parameter.UninitializedParameter):
            return False
        shape = (layer.out_features, layer.in_features)
        return _is_plain(weight) and (tuple(weight.shape) == shape or _is_flat(layer, weight))

    def plain_forward(self) -> Callable[..., Any]:
        """That of `nn.Linear`."""
        return nn.Linear.forward

    def weight(self, layer: nn.Module) -> Tensor:
        """The layer's own weight.

        Raises:
            InjectionError: FSDP1 has shared it out over processes.
        """
        weight = cast("Tensor", layer.weight)
        if _is_flat(layer, weight):
            raise InjectionError(
                "The weight of a layer is in parts, which FSDP1 has shared out over processes.",
                got="a module that ran under FSDPStrategy",
                expected="a model as it was loaded",
                fix="load the model again and put the adapter folder of the run into it: load_adapter(model, folder)",
            )
        return weight


def _stored_weight(layer: nn.Linear) -> Tensor | None:
    """The layer's own weight; None if it is computed, which would swallow what a merge writes to it.

    Computed it is by parametrizations (a property), or by weight_norm and pruning (hooks before the forward pass).
    """
    weight = layer._parameters.get("weight")
    if weight is None and _is_managed(layer) and not layer._forward_pre_hooks:
        # FSDP1 exchanges the parameter for a plain tensor while the layer computes.
        return vars(layer).get("weight")
    return weight


def _is_flat(layer: nn.Module, weight: Tensor) -> bool:
    """Whether it is what FSDP1 leaves of a weight between its uses: a piece of a flat parameter."""
    return _is_managed(layer) and weight.dim() == 1


def _is_managed(layer: nn.Module) -> bool:
    return getattr(layer, "_is_fsdp_managed_module", False)


def _is_plain(weight: Tensor) -> bool:
    """Whether the tensor holds the matrix itself.

    float8 needs its scales; some tensors of quantisation libraries look like floats of the right shape and are not.
    """
    if type(weight).__module__.startswith(("torchao", "bitsandbytes")):
        return False
    if weight.layout != torch.strided or not _computes_as_tensor(type(weight)):
        return False
    return weight.is_floating_point() and weight.dtype.itemsize > 1


def _computes_as_tensor(kind: type[Tensor]) -> bool:
    """Whether no class but torch's own decides what becomes of it in an operation (`DTensor` is a class of torch's)."""
    for name in ("__torch_function__", "__torch_dispatch__"):
        owner = next(parent for parent in kind.__mro__ if name in vars(parent))
        if owner not in (Tensor, nn.Parameter) and not owner.__module__.startswith(TORCHS_OWN):
            return False
    return True
