"""Fits under FSDP1 in two processes on the CPU, over gloo.

Run as `python -m tests.support.fsdp FOLDER`; each process writes what it found to FOLDER/PART-RANK.pt.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from pera_lightning import PeraCallback, PeraLinear, adapter_state_dict, merge_adapter, save_adapter
from pera_lightning.base_layers import quantize_linear
from pera_lightning.errors import PeraError
from tests.support.noisy import Noisy, SaveAfter, seed_everything
from tests.support.sharded import fit_language_model
from tests.support.trainers import cpu_trainer
from tests.support.zero2 import Distributed, EpochBegun

RANK = int(os.environ.get("LOCAL_RANK", 0))


class OnCPU(FSDPStrategy):
    """FSDP1 without CUDA, which Lightning insists on and torch does not."""

    def __init__(self, **options: Any) -> None:
        super().__init__(process_group_backend="gloo", **options)
        self.wrapped: list[str] = []

    def _setup_model(self, model: nn.Module) -> nn.Module:
        with on_cpu():
            model = super()._setup_model(model)
        units: Any = FullyShardedDataParallel.fsdp_modules(model)
        self.wrapped = [type(unit.module).__name__ for unit in units]
        return model


def on_cpu() -> Any:
    """Have torch wrap modules for the CPU, where it is told of no device."""
    wrap = FullyShardedDataParallel.__init__

    def wrap_on_cpu(wrapper: Any, *args: Any, **options: Any) -> None:
        wrap(wrapper, *args, **{**options, "device_id": torch.device("cpu")})

    return mock.patch.object(FullyShardedDataParallel, "__init__", wrap_on_cpu)


class Wrapped(Distributed):
    """Wrapped by its own code, before the adapters come."""

    def configure_model(self) -> None:
        with on_cpu():
            self.net = FullyShardedDataParallel(self.net, use_orig_params=True)


class Quantized(Distributed):
    """Its base turns out to be quantised when it is built."""

    def configure_model(self) -> None:
        self.net[0] = quantize_linear(self.net[0], "nf4")


class OnMeta(Distributed):
    """Without weights."""

    def configure_model(self) -> None:
        self.net.to("meta")


class Uneven(Distributed):
    """One layer is used by the first process alone and one by none; there are a batch norm and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.extra, self.never, self.norm = nn.Linear(6, 6), nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def on_train_start(self) -> None:
        self.start = adapter_of(self)["never.pera_A"]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = self.norm(batch[0]), batch[1]
        row = x.unsqueeze(1)
        x = x + self.attention(row, row, row)[0].squeeze(1)
        return super().training_step([self.extra(x) if RANK == 0 else x, y], batch_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW((p for p in self.parameters() if p.requires_grad), lr=0.02, weight_decay=0.1)


class ByHand(Distributed):
    """Calls backward itself, accumulates and clips."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        optimizer: Any = self.optimizers()
        self.manual_backward(loss)
        if batch_idx % 2:
            self.clip_gradients(optimizer, 0.5)
            optimizer.step()
            optimizer.zero_grad()
        return loss


def ddp() -> DDPStrategy:
    return DDPStrategy(process_group_backend="gloo")


def callback_of(rank: int = 2, **options: Any) -> PeraCallback:
    options = {"modules_to_save": ["net.3"], "bias": "adapted", **options}
    return PeraCallback(rank, dropout=0.1, coefficient_scale="auto", **options)


def trainer_of(folder: Path, callback: PeraCallback, strategy: Strategy | None = None, **options: Any) -> pl.Trainer:
    saving = ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}", monitor="epoch_begun", mode="min")
    others = [EpochBegun(), saving, SaveAfter(2, folder / "extra.ckpt"), *options.pop("callbacks", [])]
    strategy = strategy or OnCPU(auto_wrap_policy={nn.Sequential})
    settings = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5, "num_sanity_val_steps": 0, **options}
    return cpu_trainer(folder, callback, *others, processes=2, strategy=strategy, **settings)


def fit(folder: Path, module: Noisy, callback: PeraCallback | None = None, **options: Any) -> dict[str, Any]:
    """Fit somebody's module for two epochs; every process draws random numbers of its own."""
    ckpt_path = options.pop("ckpt_path", None)
    trainer = trainer_of(folder, callback or callback_of(adapter_dir=str(folder / "adapter")), **options)
    seed_everything(99 + RANK if ckpt_path else 1 + RANK)
    trainer.fit(module, ckpt_path=ckpt_path)
    return {"losses": module.losses, "adapter": adapter_of(module)}


def adapter_of(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in adapter_state_dict(module).items()}


def refusal(run: Callable[[], Any]) -> str:
    """The error that is raised in this process."""
    try:
        run()
    except PeraError as error:
        return str(error)
    return "none"


def runs_of_one_module(folder: Path) -> dict[str, Any]:
    """Fitted, saved, validated with its best checkpoint and fitted on by the same Trainer."""
    module, trainer = Distributed(), trainer_of(folder, callback_of(adapter_dir=str(folder / "adapter")))
    seed_everything(1 + RANK)
    trainer.fit(module)
    trainer.save_checkpoint(folder / "after.ckpt")
    save_adapter(module, folder / "saved")
    found: dict[str, Any] = {
        "fitted": {"adapter": adapter_of(module)},
        "merged": refusal(lambda: merge_adapter(module)),
    }
    trainer.validate(module, ckpt_path="best", verbose=False)
    found["best"] = {"adapter": adapter_of(module)}
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, ckpt_path=folder / "epoch=1.ckpt")
    found["fitted on"] = {"adapter": adapter_of(module), "losses": module.losses}
    other = cpu_trainer(folder, callback_of(), processes=2, strategy=ddp())
    found["refused"] = refusal(lambda: other.validate(module, verbose=False))
    return found


def validated(checkpoint: Path, folder: Path, rank: int = 2) -> dict[str, Any]:
    """What a new module holds after a validation of the checkpoint."""
    module = Distributed()
    trainer_of(folder, callback_of(rank)).validate(module, ckpt_path=checkpoint, verbose=False)
    return {"adapter": adapter_of(module)}


def refusals(folder: Path) -> dict[str, str]:
    """What cannot work, and a run that goes on from another one's checkpoint."""
    last = folder / "whole/epoch=1.ckpt"

    def refused(module: Noisy, callback: PeraCallback | None = None, **options: Any) -> str:
        return refusal(lambda: fit(folder / "x", module, callback, **options))

    return {
        "rank": refused(Distributed(), callback_of(3), ckpt_path=last),
        "rank in validation": refusal(lambda: validated(last, folder / "x", 3)),
        "targets": refused(Distributed(), callback_of(target_modules="net.0"), ckpt_path=last),
        "folder": refused(Distributed(), ckpt_path=folder),
        "policy": refused(Distributed(), strategy=OnCPU(auto_wrap_policy={nn.Linear})),
        "wrapped": refused(Wrapped()),
        "quantized": refused(Quantized()),
        "meta": refused(OnMeta()),
        "averaging": refused(Distributed(), callbacks=[StochasticWeightAveraging(1e-3)]),
    }


def own_module_part(folder: Path) -> dict[str, Any]:
    """Somebody's module: whole, resumed, run again, refused, and under DDP."""
    found: dict[str, Any] = {"whole": fit(folder / "whole", Distributed())}
    for name, start in (("within", "extra"), ("between", "epoch=0")):
        found[name] = fit(folder / name, Distributed(), ckpt_path=folder / f"whole/{start}.ckpt")
    found["validated"] = validated(folder / "whole/epoch=1.ckpt", folder / "x")
    found["one module"] = runs_of_one_module(folder / "one module")
    found["refusals"] = refusals(folder)
    found["afterwards"] = fit(folder / "afterwards", Distributed(), strategy=OnCPU())

    by_hand = {"accumulate_grad_batches": 1, "gradient_clip_val": None}
    strategies = {"fsdp": OnCPU(auto_wrap_policy={PeraLinear}), "ddp": ddp()}
    found["by hand"] = {
        name: fit(folder / f"by hand {name}", ByHand(), strategy=strategy, **by_hand)
        for name, strategy in strategies.items()
    }
    uneven, callback = (
        Uneven(),
        callback_of(
            target_modules=["0", "2", "3", "extra", "never", "out_proj"], modules_to_save=["norm"], bias="none"
        ),
    )
    found["uneven"] = {**fit(folder / "uneven", uneven, callback, strategy=OnCPU()), "start": uneven.start}
    found["ddp"] = fit(folder / "ddp", Distributed(), strategy=ddp())
    start = folder / "whole/extra.ckpt"
    found["ddp goes on"] = fit(folder / "ddp goes on", Distributed(), strategy=ddp(), ckpt_path=start)
    found["from ddp"] = fit(folder / "from ddp", Distributed(), ckpt_path=folder / "ddp/extra.ckpt")
    return found


def language_model_part(folder: Path) -> dict[str, Any]:
    """A PeraCausalLM with its data module: its blocks are wrapped without being named."""
    found: dict[str, Any] = {}

    def run(name: str, **options: Any) -> None:
        where = (folder / name, folder / "model", folder / "rows.jsonl")
        found[name] = fit_language_model(*where, sizes=(2, 1), **{"strategy": OnCPU(), **options})

    strategy = OnCPU()
    run("fsdp", strategy=strategy)
    found["wrapped"] = strategy.wrapped
    run("fsdp resumed", ckpt_path=folder / "fsdp/checkpoints/epoch=0.ckpt")
    run("tokens", trainable_tokens=[5, 6, 30])
    half = {"dtype": "bfloat16", "gradient_checkpointing": True}
    run("half", model_options=half)
    run("half ddp", model_options=half, strategy=ddp())
    return found


if __name__ == "__main__":
    where = Path(sys.argv[1])
    for part in (language_model_part, own_module_part):
        torch.save(part(where), where / f"{part.__name__}-{RANK}.pt")
