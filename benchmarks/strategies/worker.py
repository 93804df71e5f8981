"""One process of a run; each writes what it found to FOLDER/<run>-<rank>.json.

    python -m benchmarks.strategies.worker --strategy ddp --processes 2 --model MODEL --data ROWS.jsonl --out FOLDER

Trains two epochs ("whole"), then again from the checkpoint of the first ("resumed"). Lightning starts the other
processes, unless this one was started by torchrun.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn

from benchmarks.strategies.task import GLOBAL_BATCH
from pera_lightning import InstructionDataModule, PeraCallback, PeraCausalLM, adapter_state_dict
from pera_lightning.functional.distributed import whole

STRATEGIES: dict[str, Callable[[int], dict[str, Any]]] = {
    "single": lambda processes: {"devices": 1},
    "ddp": lambda processes: {"strategy": "ddp", "devices": processes},
    "ddp_spawn": lambda processes: {"strategy": "ddp_spawn", "devices": processes},
    "fsdp2": lambda processes: {"strategy": ModelParallelStrategy(processes, 1), "devices": processes},
    "tensor_parallel": lambda processes: {"strategy": ModelParallelStrategy(1, processes), "devices": processes},
}
"""Name -> options of the Trainer for that many processes."""
RUNS = ("whole", "resumed")


class Recorder(pl.Callback):
    """Writes down the losses of this process, and at the end which adapter it holds."""

    def __init__(self, run: str, folder: Path) -> None:
        self.run = run
        self.folder = folder
        self.losses: dict[int, float] = {}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the loss of the step."""
        self.losses[trainer.global_step] = outputs["loss"].item()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write, in every process."""
        found = {"losses": self.losses, "adapter": adapter_hash(pl_module)}
        (self.folder / f"{self.run}-{trainer.global_rank}.json").write_text(json.dumps(found), encoding="utf-8")


def adapter_hash(module: nn.Module) -> str:
    """SHA-256 over names and bytes of the adapter's tensors; collective where they are sharded."""
    digest = hashlib.sha256()
    for name, value in sorted(adapter_state_dict(module).items()):
        digest.update(name.encode())
        digest.update(whole(value).cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def train(run: str, arguments: argparse.Namespace, ckpt_path: Path | None) -> Path:
    """One fit; returns the checkpoint of its first epoch."""
    checkpoints = ModelCheckpoint(arguments.out / run, filename="{epoch}", save_top_k=-1, enable_version_counter=False)
    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(
        **STRATEGIES[arguments.strategy](arguments.processes),
        num_nodes=arguments.hosts,
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=arguments.out / run,
        callbacks=[PeraCallback(rank=4), checkpoints, Recorder(run, arguments.out)],
    )
    module = PeraCausalLM(str(arguments.model), dtype="float32", learning_rate=1e-2, schedule="constant")
    data = InstructionDataModule(
        str(arguments.data),
        batch_size=GLOBAL_BATCH // (arguments.data_parallel or arguments.processes * arguments.hosts),
        max_length=128,
    )
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return arguments.out / run / "epoch=0.ckpt"


def main() -> None:
    """Train whole and resumed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategy", choices=list(STRATEGIES), required=True)
    parser.add_argument("--processes", type=int, default=1, help="on each host")
    parser.add_argument("--hosts", type=int, default=1)
    parser.add_argument("--data_parallel", type=int, help="processes with data of their own; by default all")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    # Lightning's remarks: about loaders without workers, and about resuming in another folder.
    warnings.filterwarnings("ignore", module="lightning")
    middle = train("whole", arguments, None)
    train("resumed", arguments, middle)


if __name__ == "__main__":
    main()
