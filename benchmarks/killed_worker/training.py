"""One process of a small run in which every source of randomness matters.

    python -m benchmarks.killed_worker.training FOLDER whole killed --devices 2

For each name a fit in FOLDER/<name>, from the last checkpoint there if there is one; `again:whole` begins with the
middle checkpoint of FOLDER/whole, and `plain` has no dropout. Each process writes its losses, its adapter and the names
of the files it has opened for writing to FOLDER/<name>/<rank>.pt, also when it fails.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import StatefulDistributedSampler

from pera_lightning import PeraCallback, adapter_state_dict

GLOBAL_BATCH, ROWS, EPOCHS = 8, 48, 3
PLAIN = "plain"
MIDDLE = "step=8.ckpt"
KILLED_AT = (1, 3)
"""Epoch and batch in which the victim is killed, in the middle of the run and of an epoch."""


class Task(pl.LightningModule):
    """Regression with dropout; notes the loss of every step.

    Args:
        dropout: Probability.
        victim: Rank of the process that waits to be killed.
    """

    def __init__(self, dropout: float, victim: int | None = None) -> None:
        super().__init__()
        self.victim = victim
        self.losses: dict[tuple[int, int], Tensor] = {}
        # The same base in every process and run, as if it were pretrained.
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self.net = nn.Sequential(
                nn.Linear(6, 32), nn.Tanh(), nn.Dropout(dropout), nn.Linear(32, 8), nn.Linear(8, 2)
            )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Note the loss; the victim goes no further than to its batch."""
        if self.global_rank == self.victim and (self.current_epoch, batch_idx) == KILLED_AT:
            (Path(self.trainer.default_root_dir) / "waiting").write_text(str(os.getpid()), encoding="utf-8")
            time.sleep(3600)
        x, y = batch
        loss = nn.functional.mse_loss(self.net(x), y)
        self.losses[self.current_epoch, batch_idx] = loss.detach()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam over the adapter."""
        return torch.optim.Adam((p for p in self.parameters() if p.requires_grad), lr=0.02)

    def train_dataloader(self) -> StatefulDataLoader:
        """Shuffled rows; the processes together take the same batches as one process would."""
        generator = torch.Generator().manual_seed(3)
        x = torch.randn(ROWS, 6, generator=generator)
        rows = TensorDataset(x, torch.stack([x[:, 0] * x[:, 1], x[:, 2]], dim=1))
        processes = self.trainer.world_size
        sampler = StatefulDistributedSampler(rows, num_replicas=processes, rank=self.global_rank)
        return StatefulDataLoader(rows, batch_size=GLOBAL_BATCH // processes, sampler=sampler)


def train(folder: Path, task: Task, ckpt_path: Path | None = None, **options: Any) -> None:
    """Fit.

    Args:
        folder: Of checkpoints, adapter and everything else.
        task: What is trained.
        ckpt_path: Checkpoint to go on from; by default the last one in the folder, if there is one.
        options: Of the Trainer.
    """
    written: set[str] = set()
    sys.addaudithook(lambda event, found: _note(written, folder, event, found))
    last = folder / "last.ckpt"
    ckpt_path = ckpt_path or (last if last.exists() else None)
    checkpoints = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=2, save_top_k=-1, save_last=True)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[PeraCallback(rank=2, dropout=0.1 if task.net[2].p else 0.0), checkpoints],
        **options,
    )
    torch.manual_seed(1 + trainer.global_rank)
    try:
        trainer.fit(task, ckpt_path=ckpt_path)
    finally:
        found = {"losses": task.losses, "adapter": adapter_state_dict(task), "written": sorted(written)}
        torch.save(found, folder / f"{trainer.global_rank}.pt")


def _note(written: set[str], folder: Path, event: str, found: tuple[Any, ...]) -> None:
    # Whole files are written under another name, perhaps elsewhere, and then renamed.
    opened = event == "open" and isinstance(found[0], str) and found[2] & os.O_ACCMODE
    path = str(found[0]) if opened else str(found[1]) if event == "os.rename" else ""
    if path.startswith(f"{folder}/"):
        written.add(Path(path).name)


def main() -> None:
    """Run the fits, in each process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--victim", type=int, help="rank that waits to be killed")
    parser.add_argument("--timeout", type=float, default=30, help="seconds that a process waits for the others")
    arguments = parser.parse_args()
    # Of Lightning: the last checkpoint's folder is not empty; of torchdata: about torch.
    warnings.filterwarnings("ignore", category=UserWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    for words in arguments.names:
        name, _, other = words.partition(":")
        folder = arguments.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        strategy = DDPStrategy(timeout=timedelta(seconds=arguments.timeout))
        task = Task(0.0 if name == PLAIN else 0.2, arguments.victim)
        ckpt_path = arguments.folder / other / MIDDLE if other else None
        train(folder, task, ckpt_path, devices=arguments.devices, num_nodes=arguments.nodes, strategy=strategy)


if __name__ == "__main__":
    main()
