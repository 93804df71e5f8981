"""Values that are not finite, found before they are written over something good."""

from __future__ import annotations

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
    parts = {name: own_part(value.detach()) for name, value in tensors.items()}
    # Eight bits hold what a quantiser has put there.
    judged = {
        name: value
        for name, value in parts.items()
        if (value.is_floating_point() or value.is_complex()) and value.itemsize > 1 and not value.is_meta
    }
    flags = {name: _is_finite(value) for name, value in judged.items()}
    finite: dict[str, bool] = {}
    for device in {flag.device for flag in flags.values()}:
        names = [name for name, flag in flags.items() if flag.device == device]
        # One answer for all: each by itself would make a GPU wait.
        finite |= dict(zip(names, torch.stack([flags[name] for name in names]).tolist(), strict=True))
    return {name: int((~value.isfinite()).sum()) for name, value in judged.items() if not finite[name]}


def _is_finite(value: Tensor) -> Tensor:
    # In one pass, without a flag for each value: the extremes of what holds NaN are NaN.
    value = torch.view_as_real(value) if value.is_complex() else value
    return torch.stack(torch.aminmax(value)).isfinite().all() if value.numel() else value.isfinite().all()


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
