"""What makes a GPU wait for Python, found out on a CPU."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pera_lightning.callback.finite import late_number

aten = torch.ops.aten
# Operations whose result, or its shape, the CPU has to know before it can go on.
WAITING = {
    aten._local_scalar_dense.default,
    aten.is_nonzero.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
}
# Methods that read a tensor's memory, on a CPU without an operation.
READING = {Tensor.tolist, Tensor.cpu, Tensor.numpy}
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}


class _NoReading(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in READING, f"{func} waits"
        return func(*args, **(kwargs or {}))


class NoWaiting(TorchDispatchMode):
    """Fails on every operation for which Python would wait for a GPU; while `paused` it counts nothing."""

    paused = False

    def __enter__(self) -> NoWaiting:
        self._no_reading = _NoReading()
        self._no_reading.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._no_reading.__exit__(*exception)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = func in INDEXING and any(index is not None and index.dtype == torch.bool for index in args[1])
        assert self.paused or not (func in WAITING or by_mask), f"{func} waits"
        return func(*args, **(kwargs or {}))


class WithoutWaiting(pl.Callback):
    """Lets a run fail if anything between the start and the end of a batch waits. The last of the callbacks."""

    def __init__(self) -> None:
        self.mode = NoWaiting()
        self.batches = 0

    def on_train_batch_start(self, *args: object) -> None:
        self.mode.__enter__()

    def on_train_batch_end(self, *args: object) -> None:
        self.mode.__exit__(None, None, None)
        self.batches += 1

    def on_exception(self, *args: object) -> None:
        self.mode.__exit__(None, None, None)


def treat_as_asynchronous(monkeypatch: pytest.MonkeyPatch, mode: NoWaiting | None = None) -> None:
    """Let the CPU count as a device that works through a queue; to read a number that has arrived is no waiting."""
    monkeypatch.setattr(late_number, "ASYNCHRONOUS", {"cpu"})
    if mode is None:
        return
    read = late_number.LateNumbers.read_all

    def read_without_counting(self: late_number.LateNumbers) -> list[float]:
        mode.paused = True
        try:
            with torch._C.DisableTorchFunction():
                return read(self)
        finally:
            mode.paused = False

    monkeypatch.setattr(late_number.LateNumbers, "read_all", read_without_counting)
