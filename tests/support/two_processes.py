"""A whole run and one that goes on from its first checkpoint, in two processes that draw different random numbers.

Run as `python -m tests.support.two_processes FOLDER`; each process writes the losses of both runs, and the warnings of
a third whose loader has a sampler of its own.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import StatefulDistributedSampler

from pera_lightning import WeightedAccumulation
from tests.support.noisy import Noisy, train

RANK = int(os.environ.get("LOCAL_RANK", 0))


class Distributed(Noisy):
    """Its loader's sampler knows of the processes and can go on; its batches are of different weights."""

    def __init__(self) -> None:
        super().__init__()
        self.accumulation = WeightedAccumulation(self)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.accumulation.weigh(super().training_step(batch, batch_idx), 1 + 2 * RANK + batch_idx)

    def train_dataloader(self) -> DataLoader:
        sampler = StatefulDistributedSampler(self.rows, num_replicas=2, rank=RANK)
        return StatefulDataLoader(self.rows, batch_size=8, sampler=sampler)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    # Three batches in each process; the optimizer steps after the second and the third.
    options = {"devices": 2, "strategy": "ddp", "accumulate_grad_batches": 2, "save_after": 0, "limit_val_batches": 0}
    whole, rest = Distributed(), Distributed()
    train(folder / "whole", whole, 1 + RANK, **options)
    train(folder / "rest", rest, 99, folder / "whole" / "extra.ckpt", **options)
    train(folder / "own", Noisy(StatefulDataLoader), 1, max_epochs=1, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(folder / "rest", Noisy(StatefulDataLoader), 99, folder / "own" / "extra.ckpt", max_epochs=1, **options)
    torch.save([whole.losses, rest.losses, [str(warning.message) for warning in caught]], folder / f"{RANK}.pt")
