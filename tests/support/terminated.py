"""SIGTERM comes to one of two processes, and both go on from what they saved.

Run as `python -m tests.support.terminated FOLDER`. Each run has a folder of its own, named after rank and step of the
signal.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from pathlib import Path

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import StatefulDistributedSampler

from pera_lightning import PeraCallback
from tests.support.data_parallel import Classifier
from tests.support.trainers import SAFE_LOADING, cpu_trainer

# Never, in the middle of the first epoch (from either process), and in the epoch's last batch.
MOMENTS = [(-1, 0), (0, 1), (1, 1), (1, 3)]


class Terminated(Classifier):
    """Its loaders can go on within an epoch."""

    def __init__(self, rank: int, step: int) -> None:
        super().__init__()
        self.moment = (rank, step)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        if (self.global_rank, self.global_step) == self.moment:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().training_step(batch, batch_idx)

    def train_dataloader(self) -> StatefulDataLoader:
        plain = super().train_dataloader()
        sampler = StatefulDistributedSampler(plain.dataset, 2, self.trainer.global_rank, shuffle=False)
        return StatefulDataLoader(plain.dataset, batch_size=plain.batch_size, sampler=sampler)


def train(module: Terminated, folder: Path, ckpt_path: Path | None = None) -> None:
    torch.manual_seed(1)
    trainer = cpu_trainer(folder, PeraCallback(rank=3), ModelCheckpoint(folder), processes=2, strategy="ddp")
    trainer.fit(module, ckpt_path=ckpt_path, **SAFE_LOADING)


def main(folder: Path) -> None:
    for rank, step in MOMENTS:
        own = folder / f"{rank}-{step}"
        try:
            train(Terminated(rank, step), own)
        except SIGTERMException:
            train(Terminated(-1, 0), own, own / "last-sigterm.ckpt")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main(Path(sys.argv[1]))
