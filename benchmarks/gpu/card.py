"""The device that is measured: what it is, and what things take there."""

from __future__ import annotations

import datetime
import gc
import platform
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import peak_bytes

PACKAGES = ("torch", "triton", "lightning", "transformers", "peft", "bitsandbytes")
LAUNCHES = 500
"""Fewer than what a GPU keeps waiting, so that none waits for its turn."""
ROOT = Path(__file__).parent.parent.parent


def default_device() -> torch.device:
    """The GPU, if there is one."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def described(device: torch.device) -> dict[str, Any]:
    """Hardware, driver, versions and date: what a result is worth nothing without."""
    return {
        "date": f"{datetime.date.today()}",
        "commit": _printed("git", "describe", "--always", "--dirty"),
        "card": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "memory_gb": round(memory(device) / 2**30, 1) if device.type == "cuda" else None,
        "capability": list(torch.cuda.get_device_capability(device)) if device.type == "cuda" else None,
        "driver": _printed("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "launch_us": round(launch_microseconds(device), 1),
        "kernels": kernels(device),
    }


def kernels(device: torch.device) -> str:
    """Whether the project's own kernels compute on this device, and why not."""
    try:
        from pera_lightning.functional.kernels import unavailable_reason
    except ImportError:
        return "not used: this version has none"
    reason = unavailable_reason(device)
    return "used" if reason is None else f"not used: {reason}"


def launch_microseconds(device: torch.device) -> float:
    """What Python needs to start one small operation: where a GPU waits for its CPU, it decides."""
    x = torch.zeros(8, 8, device=device)
    for _ in range(2):
        synchronize(device)
        start = time.perf_counter()
        for _ in range(LAUNCHES):
            x.add_(1)
        taken = time.perf_counter() - start
    return 1e6 * taken / LAUNCHES


def memory(device: torch.device) -> int:
    """Bytes of the card."""
    return torch.cuda.get_device_properties(device).total_memory


def free(device: torch.device) -> int | None:
    """Bytes that torch could still take; None on a CPU, where nobody counts them."""
    if device.type != "cuda":
        return None
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def synchronize(device: torch.device) -> None:
    """Wait for what was started."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release(device: torch.device) -> None:
    """Give memory back that nothing holds any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def peak(device: torch.device, function: Callable[[], Any]) -> int:
    """The most bytes that a call allocates at one time, beyond what was there; it has been called before."""
    if device.type != "cuda":
        return peak_bytes(function)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    function()
    synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def ran_out(error: Exception) -> bool:
    """Whether memory ran out: torch's allocator says so by a class of its own, cuBLAS by a word."""
    return isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in str(error) or "out of memory" in str(error)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _printed(*command: str) -> str | None:
    """The first line that a command prints, if it is there and succeeds."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.splitlines()), None)
