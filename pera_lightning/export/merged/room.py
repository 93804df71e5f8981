"""Whether there is room for the plain weights of a quantised model."""

from __future__ import annotations

from pathlib import Path

import torch

from pera_lightning.errors import InjectionError


def check_room(sizes: dict[torch.device, int], dtype: torch.dtype) -> None:
    """Raise InjectionError if weights would not fit beside what is in memory now.

    Args:
        sizes: Device -> number of weights to come.
        dtype: Their dtype.
    """
    for device, count in sizes.items():
        needed, free = count * dtype.itemsize, free_bytes(device)
        if free is not None and needed > free:
            raise InjectionError(
                "There is no room for the merged weights.",
                got=f"{free / 1e9:.2f} GB free on {device}",
                expected=f"{needed / 1e9:.2f} GB for {count:,} weights of {dtype}",
                fix="merge_adapter(model, into='requantized') stays small; or move the model to the CPU first",
            )


def free_bytes(device: torch.device) -> int | None:
    """Bytes that can still be allocated on a device; None where that cannot be told."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    available = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if available is None else int(available) * 1024
