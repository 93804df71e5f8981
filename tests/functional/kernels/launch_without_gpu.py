"""Starts every kernel through Triton itself, on a driver that compiles for a GPU and only notes what it would start.

python -m tests.functional.kernels.launch_without_gpu

Run as a process of its own, without Triton's interpreter. Prints one line of JSON.
"""

from __future__ import annotations

import json
import time
from types import SimpleNamespace
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from pera_lightning.functional.form import Form
from pera_lightning.functional.kernels import adapter

started: list[tuple[Any, ...]] = []
GIVEN: list[torch.Tensor] = []


class Launcher:
    """In the place of the one that calls the CUDA driver."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self.name = source.fn.__name__

    def __call__(self, x: int, y: int, z: int, stream: int, function: str, *arguments: Any) -> None:
        # Before the kernel's own arguments: its metadata, the launch's, and two hooks.
        started.append((self.name, (x, y, z), stream, function, arguments[4:]))


def load_binary(name: str, binary: bytes, shared: int, device: int) -> tuple[str, str, int, int, int]:
    return "module", name, 32, 0, 1024


DRIVER = SimpleNamespace(
    launcher_cls=Launcher,
    utils=SimpleNamespace(
        load_binary=load_binary, get_device_properties=lambda device: {"max_shared_mem": 100_000, "warpSize": 32}
    ),
    get_current_device=lambda: 0,
    get_current_stream=lambda device: 7,
    get_current_target=lambda: GPUTarget("cuda", 90, 32),
    get_active_torch_device=lambda: torch.device("cpu"),
)


def run(kernels: adapter.AdapterKernels, tensors: list[torch.Tensor], seed: torch.Tensor) -> list[tuple[Any, ...]]:
    """One launch of each kernel."""
    started.clear()
    A, B, h, largest, x = tensors
    right, left = kernels.expand(A, B, h, largest)
    kernels.fold(right, left, A, B, h, largest, want_h=True)
    adapter.drop(x, seed, 3277, x.dtype, out=x)
    return list(started)


def main() -> None:
    """Twice each, for a few shapes: first Triton's way, then the short one."""
    driver.set_active(DRIVER)
    adapter._refuse = lambda device: None
    found = []
    for dtype, order, rank, n, m in (
        (torch.bfloat16, 2, 8, 512, 256),
        (torch.float16, 2, 4, 100, 33),
        (torch.float32, 3, 3, 64, 1),
        (torch.float32, 1, 8, 64, 64),
    ):
        form = Form(order, "full", 1.0, (1.0,) * (order - 1))
        kernels = adapter.AdapterKernels(form, rank, n, m, dtype, torch.float32, torch.device("cpu"))
        count = kernels._columns - rank
        shapes = [(rank, n), (m, rank), (count,), (), (5, n)]
        tensors = [torch.zeros(shape) for shape in shapes]
        tensors[-1] = tensors[-1].to(dtype)
        seed = torch.zeros(1, dtype=torch.int64)
        GIVEN[:] = [*tensors, seed, *kernels._tables]
        first, second = (run(kernels, tensors, seed) for _ in range(2))
        found.append({"kernels": [name for name, *_ in first], "same": same(first, second)})
    kept = sum(len(launcher._compiled) for launcher in (adapter._expand, adapter._fold, adapter._drop))
    print(json.dumps({"found": found, "kept": kept, "us": times(x=torch.zeros(5, 512, dtype=torch.bfloat16))}))


def same(first: list[tuple[Any, ...]], second: list[tuple[Any, ...]]) -> bool:
    """Whether the short way starts what Triton's own does, with the same arguments."""
    return len(first) == len(second) and all(
        one[:4] == other[:4] and len(one[4]) == len(other[4]) and all(map(alike, one[4], other[4]))
        for one, other in zip(first, second, strict=True)
    )


def alike(one: Any, other: Any) -> bool:
    """Equal, or a tensor and the place where one lies: that very one, if the caller gave it."""
    if isinstance(one, torch.Tensor):
        given = any(one is tensor for tensor in GIVEN)
        return isinstance(other, int) and other % 16 == 0 and (not given or other == one.data_ptr())
    return one == other


def times(x: torch.Tensor) -> dict[str, float]:
    """Microseconds of a launch by Triton and by the launcher, without what the driver would take."""
    seed, kernel, args = torch.zeros(1, dtype=torch.int64), adapter._drop._kernel, (x.numel(), 3277, 256)
    ways = {
        "triton": lambda: kernel[(2,)](x, x, seed, *args),
        "launcher": lambda: adapter._drop("timed", 2, (x, x, seed), *args),
    }
    found = {}
    for name, way in ways.items():
        for _ in range(200):
            way()
        begin = time.thread_time()
        for _ in range(2000):
            way()
        found[name] = round((time.thread_time() - begin) / 2000 * 1e6, 1)
    return found


if __name__ == "__main__":
    main()
