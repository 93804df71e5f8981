"""The number of tokens (rows, ...) that a batch's loss is the mean of: a number, or a tensor on its device."""

from __future__ import annotations

import torch
from torch import Tensor

from pera_lightning.errors import ConfigError
from pera_lightning.functional.distributed import whole


def one_element(count: int | Tensor) -> int | Tensor:
    """As a scalar; ConfigError for several."""
    if not isinstance(count, Tensor) or count.ndim == 0:
        return count
    if count.numel() != 1:
        raise ConfigError(
            "A batch has one number of tokens.",
            got=f"a count of shape {tuple(count.shape)}",
            expected="a number, or a tensor of one element",
            fix="pass the sum, count.sum()",
        )
    return count.reshape(())


def number(count: int | Tensor, device: torch.device) -> Tensor:
    """A float32 scalar on the device, for which nothing waits."""
    if isinstance(count, Tensor):
        return whole(count.detach()).to(device, torch.float32, non_blocking=True)
    # Not a copy from the CPU, for which it would wait.
    return torch.full((), count, dtype=torch.float32, device=device)


def unless_empty(loss: Tensor, count: int | Tensor) -> Tensor:
    """The loss, or 0 where it is the mean of nothing."""
    if not isinstance(count, Tensor):
        if count > 0:
            return loss
        count = number(count, loss.device)
    # Not `torch.where`, which copies a number to a GPU and waits.
    return loss.masked_fill(count <= 0, 0.0)
