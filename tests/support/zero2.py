"""Fits under DeepSpeed ZeRO-2 in two processes on the CPU, over gloo.

Run as `python -m tests.support.zero2 FOLDER` with `DS_ACCELERATOR=cpu` in the environment; each process writes what it
found to FOLDER/PART-RANK.pt.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import StatefulDistributedSampler

from pera_lightning import PeraCallback
from pera_lightning.checkpoint import adapter_state_dict
from pera_lightning.errors import PeraError
from tests.support.noisy import Noisy, SaveAfter, seed_everything
from tests.support.sharded import fit_language_model
from tests.support.trainers import cpu_trainer

RANK = int(os.environ.get("LOCAL_RANK", 0))


class OnCPU(DeepSpeedStrategy):
    """ZeRO-2 without CUDA, which Lightning insists on and DeepSpeed does not."""

    def __init__(self) -> None:
        super().__init__(stage=2, exclude_frozen_parameters=True, process_group_backend="gloo")

    @property
    def root_device(self) -> torch.device:
        # DeepSpeed wants to know a number of every device.
        return torch.device("cpu", 0)

    def setup_environment(self) -> None:
        DDPStrategy.setup_environment(self)

    def setup_distributed(self) -> None:
        # It would compile an operator in C++ for the shared memory of a machine.
        sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
        self.set_world_ranks()
        self._init_deepspeed_distributed()


class EpochBegun(pl.Callback):
    """Logs a metric by which the first checkpoint is the best."""

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        module.log("epoch_begun", float(trainer.current_epoch))


class SomeLayers(Noisy):
    """Gives a part of the adapter to the optimizer."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.net[0].parameters(), lr=1e-2)


class Distributed(Noisy):
    """Its loader's sampler knows of the processes and can go on."""

    def train_dataloader(self) -> Any:
        sampler = StatefulDistributedSampler(self.rows, num_replicas=2, rank=RANK)
        return StatefulDataLoader(self.rows, batch_size=4, sampler=sampler)


def trainer_with(folder: Path, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    return cpu_trainer(folder, *callbacks, processes=2, strategy=OnCPU(), num_sanity_val_steps=0, **options)


def callback_of(rank: int = 2, **options: Any) -> PeraCallback:
    return PeraCallback(rank, dropout=0.1, coefficient_scale="auto", bias="adapted", **options)


def fit(folder: Path, module: Noisy, callback: PeraCallback | None = None, **options: Any) -> dict[str, Any]:
    """Fit somebody's module for two epochs; every process draws other random numbers, but for the adapter's start."""
    ckpt_path, save_after = options.pop("ckpt_path", None), options.pop("save_after", 2)
    saving = ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}", monitor="epoch_begun", mode="min")
    callback = callback or callback_of(adapter_dir=str(folder / "adapter"))
    trainer = trainer_with(
        folder, callback, EpochBegun(), saving, SaveAfter(save_after, folder / "extra.ckpt"), **options
    )
    seed_everything(99 if ckpt_path else 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, ckpt_path=ckpt_path)
    return {
        "losses": module.losses,
        "adapter": {key: value.clone() for key, value in adapter_state_dict(module).items()},
        "warnings": [str(warning.message) for warning in caught],
    }


def refusal(run: Callable[[], Any]) -> str:
    """The error that is raised in this process."""
    try:
        run()
    except PeraError as error:
        return str(error)
    return "none"


def validate(checkpoint: Path, module: Noisy, rank: int = 2) -> dict[str, Any]:
    """Validate what a checkpoint holds."""
    trainer_with(checkpoint.parent, callback_of(rank)).validate(module, ckpt_path=checkpoint, verbose=False)
    return {"adapter": {key: value.clone() for key, value in adapter_state_dict(module).items()}}


def own_module_part(folder: Path) -> dict[str, Any]:
    """Somebody's module: whole, resumed, validated, refused."""
    found: dict[str, Any] = {"whole": fit(folder / "whole", Distributed())}
    for name, start in (("within", "extra"), ("between", "epoch=0")):
        found[name] = fit(folder / name, Distributed(), ckpt_path=folder / f"whole/{start}.ckpt")
    accumulating = {"accumulate_grad_batches": 2}
    found["pairs"] = fit(folder / "pairs", Distributed(), save_after=3, **accumulating)
    start = folder / "pairs/extra.ckpt"
    found["pairs resumed"] = fit(folder / "pairs again", Distributed(), ckpt_path=start, **accumulating)
    start = folder / "whole/extra.ckpt"
    found["cut pair"] = fit(folder / "cut", Distributed(), ckpt_path=start, **accumulating)
    last = folder / "whole/epoch=1.ckpt"
    validated = Distributed()
    found["validated"] = validate(last, validated)
    found["refusals"] = {
        "rank": refusal(lambda: fit(folder / "x", Distributed(), callback_of(3), ckpt_path=last)),
        "rank in validation": refusal(lambda: validate(last, Distributed(), 3)),
        "targets": refusal(
            lambda: fit(folder / "x", Distributed(), callback_of(target_modules="net.0"), ckpt_path=last)
        ),
        "start": refusal(lambda: fit(folder / "x", Distributed(), callback_of(polynomial_start_step=3))),
        "optimizer": refusal(lambda: fit(folder / "x", SomeLayers())),
    }
    # And the next fit, of a module whose hooks the validation took away, saves as if nothing had been.
    found["afterwards"] = fit(folder / "afterwards", validated)
    return found


def language_model_part(folder: Path) -> dict[str, Any]:
    """A PeraCausalLM with its data module."""
    return fit_language_model(folder / "zero2", folder / "model", folder / "rows.jsonl", sizes=(2, 1), strategy=OnCPU())


if __name__ == "__main__":
    where = Path(sys.argv[1])
    for part in (language_model_part, own_module_part):
        torch.save(part(where), where / f"{part.__name__}-{RANK}.pt")
