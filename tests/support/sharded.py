"""Modules for `ModelParallelStrategy`, and fits that write down what they did.

Run as `python -m tests.support.sharded FOLDER PART`, where PART names a function below that ends in `_part`; each
process writes what it found to FOLDER/PART-RANK.pt.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import StatefulDistributedSampler

from pera_lightning import (
    InstructionDataModule,
    PeraCallback,
    PeraCausalLM,
    adapter_state_dict,
    load_adapter,
    parallelize_adapted,
    save_adapter,
)
from pera_lightning.errors import PeraError
from pera_lightning.functional.distributed import is_distributed, own_part, whole
from pera_lightning.models import causal_lm
from pera_lightning.requirements import SHARDS_INTEGERS, is_outdated
from tests.support.hostile_checkpoints import HOSTILE, make_hostile
from tests.support.noisy import Noisy, SaveAfter, seed_everything
from tests.support.trainers import cpu_trainer

RANK = int(os.environ.get("LOCAL_RANK", 0))


class Losses(pl.Callback):
    """Writes down every loss as it is logged, by epoch and batch."""

    def __init__(self) -> None:
        self.found: dict[tuple[int, int], Tensor] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.found[trainer.current_epoch, batch_idx] = trainer.callback_metrics["train_loss"]


def strategy(data: int, tensor: int, distributed: bool = True) -> ModelParallelStrategy:
    return ModelParallelStrategy(data, tensor, save_distributed_checkpoint=distributed)


def fit_language_model(
    folder: Path, model: Path, rows: Path, *, sizes: tuple[int, int] = (1, 1), **options: Any
) -> dict[str, Any]:
    """Fit a PeraCausalLM for two epochs of three steps with four rows each; what it found."""
    seed_everything(1)
    data, tensor = sizes
    parallel = options.pop("strategy", None) or strategy(data, tensor, options.pop("distributed", True))
    quantization, ckpt_path = options.pop("quantization", None), options.pop("ckpt_path", None)
    # A has more rows than two processes can share evenly: it is sharded over its columns.
    callback = options.pop("callback", None) or PeraCallback(
        3,
        energy_every_n_steps=1,
        adapter_dir=str(folder / "adapter"),
        trainable_tokens=options.pop("trainable_tokens", None),
    )
    module = PeraCausalLM(
        str(model),
        learning_rate=1e-2,
        schedule="constant",
        quantization=quantization,
        generate_in_validation=True,
        **options.pop("model_options", {}),
    )
    batches = InstructionDataModule(train_files=str(rows), val_files=str(rows), batch_size=4 // data, max_val_rows=4)
    losses = Losses()
    saving = ModelCheckpoint(folder / "checkpoints", save_top_k=-1, filename="{epoch}", monitor="val_loss")
    options = {"strategy": parallel, "gradient_clip_val": 1.0, "num_sanity_val_steps": 0, **options}
    trainer = cpu_trainer(folder, callback, losses, saving, processes=data * tensor, **options)
    trainer.fit(module, batches, ckpt_path=ckpt_path)
    return {
        "losses": losses.found,
        "adapter": {key: whole(value) for key, value in adapter_state_dict(module).items()},
        "own_bytes": sum(own_part(value).nbytes for value in module.parameters()),
        "metrics": {key: value.item() for key, value in trainer.callback_metrics.items()},
        "best": saving.best_model_path,
    }


def without_parallelism(folder: Path, model: Path, rows: Path, **options: Any) -> dict[str, Any]:
    """The same fit in this process alone."""
    return fit_language_model(folder, model, rows, strategy="auto", **options)


class CountedLoads:
    """Counts in which process a model is loaded with its weights."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> CountedLoads:
        self._load = causal_lm.load_causal_lm

        def load(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return self._load(*args, **kwargs)

        causal_lm.load_causal_lm = load  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        causal_lm.load_causal_lm = self._load


def language_model_part(folder: Path) -> dict[str, Any]:
    """FSDP2, tensor parallelism and 4 bits in two processes, whole and resumed."""
    found: dict[str, Any] = {}

    def fit(name: str, **options: Any) -> None:
        found[name] = fit_language_model(folder / name, folder / "model", folder / "rows.jsonl", **options)

    with CountedLoads() as loads:
        fit("fsdp", sizes=(2, 1))
    found["loads"] = loads.count
    fit("fsdp resumed", sizes=(2, 1), ckpt_path=folder / "fsdp/checkpoints/epoch=0.ckpt")
    fit("tensor", sizes=(1, 2))
    fit("tensor resumed", sizes=(1, 2), ckpt_path=folder / "tensor/checkpoints/epoch=0.ckpt")
    if not is_outdated("torch", SHARDS_INTEGERS):
        fit("nf4", sizes=(2, 1), quantization="nf4-dq")
    fit("tokens", sizes=(2, 1), trainable_tokens=[5, 6, 30])
    fit("int8", sizes=(2, 1), quantization="int8")
    return found


def four_part(folder: Path) -> dict[str, Any]:
    """Two by two processes go on from what two have written."""
    checkpoint = folder / "fsdp/checkpoints/epoch=0.ckpt"
    return fit_language_model(
        folder / "four", folder / "model", folder / "rows.jsonl", sizes=(2, 2), ckpt_path=checkpoint
    )


def one_part(folder: Path) -> dict[str, Any]:
    """One process goes on from what two have written."""
    checkpoint = folder / "fsdp/checkpoints/epoch=0.ckpt"
    return fit_language_model(folder / "one", folder / "model", folder / "rows.jsonl", ckpt_path=checkpoint)


class Shardable(Noisy):
    """Somebody's module, and how it is sharded."""

    def __init__(self) -> None:
        super().__init__(StatefulDataLoader)

    def _shard(self) -> None:
        if not isinstance(self.net, FSDPModule):
            mesh = self.device_mesh["data_parallel"]
            for group in (self.net[2], self.net):
                fully_shard(group, mesh=mesh)
                # gloo has no averages, and torch before 2.11 takes sums for them.
                group.set_force_sum_reduction_for_comms(True)

    def train_dataloader(self) -> Any:
        sampler = StatefulDistributedSampler(self.rows, num_replicas=2, rank=RANK)
        return StatefulDataLoader(self.rows, batch_size=4, sampler=sampler)


class Sharded(Shardable):
    """Sharded in `configure_model`: before the adapters come."""

    def configure_model(self) -> None:
        self._shard()


class ShardsItself(Shardable):
    """Sharded when the adapters are there; it has no `configure_model`."""

    def shard_model(self) -> None:
        self._shard()


class Unsharded(Noisy):
    """Under a strategy for sharding, but not sharded."""

    def configure_model(self) -> None: ...


class PartlySharded(Sharded):
    """The layer at the end is in no sharded module."""

    def _shard(self) -> None:
        if not isinstance(self.net[0], FSDPModule):
            fully_shard(self.net[0], mesh=self.device_mesh["data_parallel"])


class OnlySplit(Noisy):
    """Its layers are split for tensor parallelism, over one process, while two have data of their own."""

    def shard_model(self) -> None:
        plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
        parallelize_adapted(self.net, self.device_mesh["tensor_parallel"], plan)


class SplitBefore(Noisy):
    """Split by columns and rows before the adapters come."""

    def configure_model(self) -> None:
        plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
        parallelize_module(self.net, self.device_mesh["tensor_parallel"], plan)


def fit_noisy(folder: Path, module: Noisy, **options: Any) -> dict[str, Any]:
    """Fit somebody's module for two epochs; every process draws other random numbers, but for the adapter's start."""
    ckpt_path, save_after = options.pop("ckpt_path", None), options.pop("save_after", None)
    sizes = options.pop("sizes", (2, 1))
    callback = options.pop("callback", None) or PeraCallback(
        3, dropout=0.1, coefficient_scale="auto", modules_to_save=["net.3"], bias="adapted", adapter_dir=str(folder)
    )
    saving = ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}")
    extra: list[pl.Callback] = options.pop("averaging", [])
    extra += [] if save_after is None else [SaveAfter(save_after, folder / "extra.ckpt")]
    options = {"strategy": strategy(*sizes, options.pop("distributed", True)), "num_sanity_val_steps": 0, **options}
    trainer = cpu_trainer(folder, callback, saving, *extra, processes=2, **options)
    seed_everything(99 if ckpt_path else 1)
    trainer.fit(module, ckpt_path=ckpt_path)
    adapter = adapter_state_dict(module)
    return {
        "losses": module.losses,
        "adapter": {key: whole(value) for key, value in adapter.items()},
        "sharded": all(map(is_distributed, adapter.values())),
        "columns": [key for key, value in adapter.items() if Shard(1) in getattr(value, "placements", ())],
        "frozen": [name for name, value in module.named_parameters() if not value.requires_grad],
    }


def saved_and_loaded(folder: Path) -> dict[str, Any]:
    """A sharded adapter saved by both processes, changed, used (which gathers weights) and loaded again."""
    module = Sharded()
    before = fit_noisy(folder, module)["adapter"]
    save_adapter(module, folder / "saved")
    torch.distributed.barrier()
    with torch.no_grad():
        for value in adapter_state_dict(module).values():
            value.mul_(0.5)
        module(torch.ones(2, 6))
    load_adapter(module, folder / "saved")
    after = {key: whole(value) for key, value in adapter_state_dict(module).items()}
    return {"before": before, "after": after}


def refusal(folder: Path, module: Any, **options: Any) -> str:
    """The error that a fit raises in this process."""
    try:
        fit_noisy(folder, module, **options)
    except PeraError as error:
        return str(error)
    return "none"


def own_module_part(folder: Path) -> dict[str, Any]:
    """Somebody's modules in two processes: sharded early and late, interrupted, refused."""
    found: dict[str, Any] = {
        "early": fit_noisy(folder / "early", Sharded()),
        "late": fit_noisy(folder / "late", ShardsItself()),
    }
    for name, distributed in (("folder", True), ("file", False)):
        options = {"accumulate_grad_batches": 2, "save_after": 2, "distributed": distributed}
        found[name] = fit_noisy(folder / name, ShardsItself(), **options)
        start = folder / name / "extra.ckpt"
        found[f"{name} resumed"] = fit_noisy(folder / f"{name} resumed", ShardsItself(), ckpt_path=start, **options)
    found["loaded"] = saved_and_loaded(folder / "loaded")
    found["plain file"] = refusal(folder / "x", ShardsItself(), ckpt_path=folder / "plain.ckpt")
    averaging = [StochasticWeightAveraging(1e-3)]
    found["averaging"] = refusal(folder / "x", ShardsItself(), averaging=averaging)
    start = folder / "late/epoch=0.ckpt"
    other = PeraCallback(2, dropout=0.1, coefficient_scale="auto", modules_to_save=["net.3"], bias="adapted")
    fewer = PeraCallback(3, target_modules=["net.0"], coefficient_scale="auto", modules_to_save=["net.3"])
    hostile = {name: make_hostile(start, name) if RANK == 0 else start for name in HOSTILE}
    found["refusals"] = {
        **{name: refusal(folder / "x", ShardsItself(), ckpt_path=path) for name, path in hostile.items()},
        "rank": refusal(folder / "x", ShardsItself(), callback=other, ckpt_path=start),
        "targets": refusal(folder / "x", ShardsItself(), callback=fewer, ckpt_path=start),
        "no checkpoint": refusal(folder / "x", ShardsItself(), ckpt_path=folder),
        "unsharded": refusal(folder / "x", Unsharded()),
        "partly": refusal(folder / "x", PartlySharded()),
        "only split": refusal(folder / "x", OnlySplit(), callback=PeraCallback(3, target_modules=["net.0", "net.2"])),
        "split": refusal(folder / "x", SplitBefore(), sizes=(1, 2)),
    }
    found["afterwards"] = fit_noisy(folder / "afterwards", ShardsItself())
    return found


if __name__ == "__main__":
    where, part = Path(sys.argv[1]), sys.argv[2]
    torch.save(globals()[f"{part}_part"](where), where / f"{part}-{RANK}.pt")
