"""Fits in two processes that go wrong, one after the other: `python -m tests.support.failing FOLDER`."""

from __future__ import annotations

import json
import math
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.multiprocessing import ProcessRaisedException

from pera_lightning import PeraCallback
from tests.support.data_parallel import Classifier
from tests.support.trainers import SAFE_LOADING, cpu_trainer


class Failing(Classifier):
    """Its loss becomes NaN on one rank."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if self.global_step == 2 and self.global_rank == self.rank:
            return loss * math.nan
        return loss


def train(module: pl.LightningModule, callback: pl.Callback, folder: Path, ckpt_path: Any = None) -> None:
    checkpoints = ModelCheckpoint(folder, filename="rank3", enable_version_counter=False)
    trainer = cpu_trainer(folder, callback, checkpoints, processes=2)
    trainer.fit(module, ckpt_path=ckpt_path, **SAFE_LOADING)


def fit(problem: str, folder: Path) -> None:
    if problem.startswith("nan"):
        train(Failing(int(problem[-1])), PeraCallback(rank=3), folder)
    elif problem == "target":
        train(Classifier(), PeraCallback(target_modules=["misspelt"]), folder)
    elif problem == "folder":
        (folder / "file").touch()
        train(Classifier(), PeraCallback(rank=3, adapter_dir=str(folder / "file" / "adapter")), folder)
    else:
        train(Classifier(), PeraCallback(rank=2), folder, folder / "rank3.ckpt")


def main(folder: Path) -> None:
    found = {}
    train(Classifier(), PeraCallback(rank=3), folder)
    for problem in ("nan0", "nan1", "target", "folder", "options"):
        start = time.perf_counter()
        try:
            fit(problem, folder)
        except ProcessRaisedException as error:
            found[problem] = {"error": str(error), "seconds": time.perf_counter() - start}
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="lightning")
    torch.manual_seed(1)
    main(Path(sys.argv[1]))
