"""Fits in two processes, of which the second has numbers that are not finite.

Run as `python -m tests.support.spoiled_processes FOLDER`. Each process writes the messages with which its fits stop,
and whether its part of the weights is finite then, to FOLDER/RANK.json.
"""

from __future__ import annotations

import json
import math
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from pera_lightning import PeraCallback
from pera_lightning.errors import TrainingError
from pera_lightning.functional.distributed import own_part
from tests.support.models import Regressor
from tests.support.trainers import cpu_trainer

RANK = int(os.environ.get("LOCAL_RANK", 0))
STEP = 3


class OnOneRank(Regressor):
    """In the fourth batch the second process has a bad loss, or bad gradients under a good one."""

    def __init__(self, bad: str) -> None:
        super().__init__()
        self.bad = bad

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        predicted = self(batch[0])
        now = self.global_step == STEP and self.global_rank == 1
        if now and self.bad == "gradient":
            predicted.register_hook(lambda gradient: gradient * math.nan)
        loss = nn.functional.mse_loss(predicted, batch[1])
        return loss * math.nan if now and self.bad == "loss" else loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD((value for value in self.parameters() if value.requires_grad), lr=0.02)


class Sharded(OnOneRank):
    def shard_model(self) -> None:
        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])


class ByHand(OnOneRank):
    def __init__(self, bad: str) -> None:
        super().__init__(bad)
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


class Ruined(pl.Callback):
    """Makes a part of a weight NaN in the second process."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        if pl_module.bad == "weight" and trainer.global_step == STEP and RANK == 1:
            own_part(pl_module.net[2].pera_B.data).fill_(math.nan)


def fit(folder: Path, kind: type[OnOneRank], bad: str) -> dict[str, Any]:
    sharded = issubclass(kind, Sharded)
    strategy = ModelParallelStrategy(2, 1) if sharded else "ddp"
    saving = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    module = kind(bad)
    trainer = cpu_trainer(folder, PeraCallback(2), Ruined(), saving, processes=2, strategy=strategy, max_epochs=3)
    try:
        trainer.fit(module)
    except TrainingError as error:
        finite = all(own_part(value).isfinite().all().item() for value in module.parameters())
        return {"message": str(error), "finite": finite}
    return {"message": "", "finite": True}


def main(folder: Path) -> None:
    found = {
        f"{kind.__name__} {bad}": fit(folder / f"{kind.__name__} {bad}", kind, bad)
        for kind in (OnOneRank, ByHand, Sharded)
        for bad in ("loss", "gradient", "weight")
    }
    (folder / f"{RANK}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main(Path(sys.argv[1]))
