"""The states of all random number generators of a process, in types that load with `weights_only=True`."""

from __future__ import annotations

import random
import sys
from typing import Any

import torch
from torch import Tensor


def random_states() -> dict[str, Any]:
    """The states of the generators of `random`, numpy (if imported), torch's CPU and its CUDA devices (if in use)."""
    version, numbers, gauss = random.getstate()
    states: dict[str, Any] = {
        "python": [version, list(numbers), gauss],
        "torch": torch.get_rng_state(),
        # Asking for the states would start CUDA where nothing uses it.
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        kind, keys, *rest = numpy.random.get_state()
        states["numpy"] = [kind, keys.tolist(), *rest]
    return states


def restore_random_states(states: dict[str, Any]) -> None:
    """Set the generators to what `random_states` returned; those that it did not hold stay as they are."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    torch.set_rng_state(_on_cpu(states["torch"]))
    # Where the run goes on with fewer devices, or without any, the others' states have no use.
    for device, state in zip(range(torch.cuda.device_count()), states["cuda"], strict=False):
        torch.cuda.set_rng_state(_on_cpu(state), device)
    numpy = sys.modules.get("numpy")
    if numpy is not None and "numpy" in states:
        numpy.random.set_state(tuple(states["numpy"]))


def _on_cpu(state: Tensor) -> Tensor:
    # Checkpoints may be loaded to the GPU; generators want their state on the CPU.
    return state.cpu()
