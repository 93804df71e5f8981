"""Whether the kernels can run, and why not."""

from __future__ import annotations

import os
from functools import lru_cache

import torch

SWITCH = "PERA_KERNELS"
"""Environment variable: 0 turns the kernels off, and so do false, off and no."""
OLDEST_TRITON = (3, 4)
OLDEST_CAPABILITY = (7, 0)


# A compiler takes the answer as a constant.
@torch.compiler.assume_constant_result
def unavailable_reason(device: torch.device) -> str | None:
    """Why plain operations compute on this device, or None where the kernels do.

    Args:
        device: Of the tensors. The meta device stands for a GPU that has the kernels.
    """
    return _reason(device.type, device.index)


@lru_cache(maxsize=64)
def _reason(kind: str, index: int | None) -> str | None:
    switch = os.environ.get(SWITCH, "").strip().lower()
    if switch in ("0", "false", "off", "no"):
        return f"{SWITCH}={switch} turns them off"
    if kind == "meta":
        return None
    if kind != "cuda" or torch.version.hip is not None:
        return f"they are for CUDA GPUs, and this is {'an AMD GPU' if kind == 'cuda' else kind}"
    found = _triton_version()
    if found is None:
        return "triton is not installed"
    if found < OLDEST_TRITON:
        return f"triton {'.'.join(map(str, found))} is older than {'.'.join(map(str, OLDEST_TRITON))}"
    capability = torch.cuda.get_device_capability(index)
    if capability < OLDEST_CAPABILITY:
        return f"compute capability {capability[0]}.{capability[1]} is below {OLDEST_CAPABILITY[0]}.0"
    return None


def interpreted() -> bool:
    """Whether Triton's interpreter takes the place of its compiler, which runs kernels on tensors of a CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _triton_version() -> tuple[int, ...] | None:
    try:
        import triton
    except ImportError:
        return None
    return tuple(int(part) for part in triton.__version__.split(".")[:2])
