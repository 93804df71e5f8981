"""Values that are not finite, found before they are written over something good."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pera_lightning.functional.distributed import own_part
from pera_lightning.injection.saved_modules import kept_infinities


def not_finite(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Which tensors hold NaN or infinity, and how many values of each are.

    Args:
        tensors: By name, of any dtype and on any device; of one that is sharded this process's part counts. Waits for
            the devices.

    Returns:
        Name -> number of values that are not finite; empty if all are finite.
    """
    largest = largest_values(tensors)
    return {
        name: int((~own_part(tensors[name]).isfinite()).sum())
        for name, value in largest.items()
        if not math.isfinite(value)
    }


def largest_values(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """The largest absolute value of each floating tensor; NaN if one of its values is, 0 if it has none.

    Args:
        tensors: As for `not_finite`. Those of whole numbers, of eight bits and on the meta device are left out.
    """
    parts = {name: own_part(value.detach()) for name, value in tensors.items()}
    # Eight bits hold what a quantiser has put there.
    judged = {
        name: _largest(value)
        for name, value in parts.items()
        if (value.is_floating_point() or value.is_complex()) and value.itemsize > 1 and not value.is_meta
    }
    found: dict[str, float] = {}
    for kind in {(value.device, value.dtype) for value in judged.values()}:
        names = [name for name, value in judged.items() if (value.device, value.dtype) == kind]
        # One answer for all: each by itself would make a GPU wait.
        found |= dict(zip(names, torch.stack([judged[name] for name in names]).tolist(), strict=True))
    return {name: found[name] for name in judged}


def _largest(value: Tensor) -> Tensor:
    if value.numel() == 0:
        return torch.zeros((), dtype=torch.float32, device=value.device)
    if value.is_complex():
        value = torch.view_as_real(value)
    # One pass, without anything of the tensor's size.
    least, most = value.aminmax()
    return torch.maximum(-least, most).to(torch.promote_types(value.dtype, torch.float32))


def infinite_values(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """As `not_finite`, without buffers that came with infinities and still have them where they were: masks."""
    found = not_finite(tensors)
    constant = kept_infinities(model) if found else set()
    return {name: count for name, count in found.items() if name not in constant}


def describe_infinite(found: Mapping[str, int]) -> str:
    """What `not_finite` found, in words."""
    first = next(iter(found))
    values = f"{sum(found.values()):,} values"
    return f"{values} of {first!r}" if len(found) == 1 else f"{values} of {len(found)} tensors, e.g. of {first!r}"
