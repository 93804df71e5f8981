"""Fits of one small network in several processes and in one: `python -m tests.support.data_parallel FOLDER`.

The processes are forked, which spares each its imports. Results: FOLDER/<name>-<rank>.pt.
"""

from __future__ import annotations

import math
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from pera_lightning import PeraCallback, adapter_state_dict
from tests.support.trainers import SAFE_LOADING, cpu_trainer

OPTIONS: dict[str, dict[str, Any]] = {
    "order 2": {},
    "order 1": {"order": 1},
    "modules_to_save": {"modules_to_save": ["4"]},
    "bias": {"bias": "adapted"},
    "trainable_tokens": {"trainable_tokens": [0, 3]},
}
GLOBAL_BATCH = 8
ROWS = 32
EPOCHS = 2
STEPS = EPOCHS * ROWS // GLOBAL_BATCH


class Classifier(pl.LightningModule):
    """Reads tokens; plain SGD, so that a gradient of the wrong size is seen."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(7)
            embedding = nn.Embedding(6, 12)
            self.net = nn.Sequential(embedding, nn.Flatten(), nn.Linear(48, 16), nn.Tanh(), nn.Linear(16, 3))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD((p for p in self.parameters() if p.requires_grad), lr=0.5, momentum=0.5)

    def train_dataloader(self) -> DataLoader:
        x = torch.randint(0, 6, (ROWS, 4), generator=torch.Generator().manual_seed(3))
        rows = TensorDataset(x, x[:, 0] % 3)
        # The same rows a step, in one process or spread over several.
        rank, processes = self.trainer.global_rank, self.trainer.world_size
        sampler = DistributedSampler(rows, processes, rank, shuffle=False)
        return DataLoader(rows, batch_size=GLOBAL_BATCH // processes, sampler=sampler)


class Recorder(pl.Callback):
    """Writes what each process ends with, and how many bytes of sums it exchanged in the last step."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, Any] = {}

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, idx: int) -> None:
        self.found.setdefault("first_step", trainer.global_step)
        if trainer.global_step == STEPS - 1:
            self.found["finds_unused"] = getattr(trainer.strategy.model, "find_unused_parameters", None)
            self._profile = profile(activities=[ProfilerActivity.CPU], record_shapes=True)
            self._profile.__enter__()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step == STEPS:
            self._profile.__exit__(None, None, None)
            sums = [event for event in self._profile.events() if event.name == "gloo:all_reduce"]
            self.found["sent"] = sum(4 * math.prod(shape) for event in sums for shape in event.input_shapes if shape)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Its last file; in every process.
        self.found["folder_written"] = (self.path / "adapter" / "README.md").is_file()
        self.found["adapter"] = adapter_state_dict(pl_module)
        self.found["trainable"] = sum(4 * p.numel() for p in pl_module.parameters() if p.requires_grad)
        self.found["momentum"] = [state["momentum_buffer"] for state in trainer.optimizers[0].state.values()]
        self.found["warnings"] = [str(warning.message) for warning in self.found["warnings"]]
        torch.save(self.found, f"{self.path}-{trainer.global_rank}.pt")


def fit(path: Path, processes: int, ckpt_path: Path | None = None, **options: Any) -> None:
    """One fit, with a checkpoint of each epoch in the folder `path`."""
    torch.manual_seed(1)
    checkpoints = ModelCheckpoint(path, filename="{epoch}", save_top_k=-1)
    recorder = Recorder(path)
    callback = PeraCallback(rank=3, energy_every_n_steps=2, **options)
    trainer = cpu_trainer(path, callback, checkpoints, recorder, processes=processes, max_epochs=EPOCHS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        recorder.found["warnings"] = caught
        trainer.fit(Classifier(), ckpt_path=ckpt_path, **SAFE_LOADING)


def main(folder: Path) -> None:
    for name, options in OPTIONS.items():
        fit(folder / f"{name} x2", 2, **options)
    fit(folder / "order 2 x4", 4)
    fit(folder / "2 to 4", 4, folder / "order 2 x2" / "epoch=0.ckpt")
    # A process that has computed gradients itself is not to be forked: what runs in this one comes last.
    for name, options in OPTIONS.items():
        fit(folder / f"{name} x1", 1, **options)
    fit(folder / "2 to 1", 1, folder / "order 2 x2" / "epoch=0.ckpt")
    fit(folder / "1 to 2", 2, folder / "order 2 x1" / "epoch=0.ckpt")


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="lightning")
    main(Path(sys.argv[1]))
