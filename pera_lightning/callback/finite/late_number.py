"""Numbers that Python wants to know, without making the device wait that computes them."""

from __future__ import annotations

import torch
from torch import Tensor

from pera_lightning.functional.distributed import whole

ASYNCHRONOUS = frozenset({"cuda"})
"""Types of devices that work through a queue while Python goes on."""


class LateNumbers:
    """A tensor on its way to the CPU.

    `item()` waits until a GPU has done everything that was queued, and from then on the GPU has nothing to do until
    Python has queued something again. Here the copy takes its place in the queue. Whoever reads it later waits until
    the copy is done, which is most often at once, and what was queued behind the copy goes on meanwhile.

    Args:
        value: A tensor of few elements, on any device.

    Attributes:
        late: Whether the device would have to wait if the numbers were read at once.
    """

    def __init__(self, value: Tensor) -> None:
        self.late = value.device.type in ASYNCHRONOUS
        value = whole(value.detach())
        # Into pinned memory, which torch takes here by itself; into any other the copy would wait.
        self._value = value.to("cpu", non_blocking=value.is_cuda)
        self._arrived = torch.cuda.current_stream(value.device).record_event() if value.is_cuda else None

    def read_all(self) -> list[float]:
        """The numbers in a flat list; waits for what was queued before them, and for nothing else."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return [float(self._value)] if self._value.numel() == 1 else self._value.reshape(-1).tolist()


class LateNumber(LateNumbers):
    """A tensor of one element on its way to the CPU."""

    def read(self) -> float:
        """The number."""
        [value] = self.read_all()
        return float(value)
