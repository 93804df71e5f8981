"""Fits on rows with answers of unequal lengths that write down the gradients their optimizer gets, and the right ones.

Run as `python -m tests.support.accumulation FOLDER`; each of two processes writes FOLDER/NAME-RANK.pt.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pera_lightning import PeraCallback, PeraCausalLM, PeraConfig, WeightedAccumulation, inject_adapter
from pera_lightning.functional.distributed import whole
from pera_lightning.injection import adapter_layers, clean_name
from tests.support.causal_fits import loader
from tests.support.pretrained import character_tokenizer, padded_batch
from tests.support.trainers import cpu_trainer

RANK = int(os.environ.get("LOCAL_RANK", 0))
Gradients = dict[str, Tensor]
Batches = list[dict[str, Tensor]]

# By the letter: 2, 8, 3, 12, 5, 2, 10 and 4 tokens to learn, with the end of each.
ROWS = [("why? ", "abcdefghijklmnop"[:length]) for length in (1, 7, 2, 11, 4, 1, 9, 3)]
TOKENS = [len(answer) + 1 for _, answer in ROWS]


def batches_of(rows: list[int], size: int) -> Batches:
    """Batches of that many rows, the last of what is left."""
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    return [padded_batch(character_tokenizer(), [ROWS[row] for row in part]) for part in parts]


class Recording:
    """Writes down what the optimizer is about to get, clipped, and what is logged; the weights stay as they are."""

    steps: list[Gradients]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        self.steps = []
        return torch.optim.SGD((value for value in self.parameters() if value.requires_grad), lr=0.0)

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **options: Any) -> None:
        super().configure_gradient_clipping(optimizer, *args, **options)
        self.steps.append(gradients_of(self))


class Recorded(Recording, PeraCausalLM):
    """A language model, each process with batches of its own."""

    def __init__(self, folder: Path, parts: list[Batches], validated: list[Batches] | None = None, **options: Any):
        super().__init__(str(folder), **options)
        self.parts, self.validated = parts, validated

    def train_dataloader(self) -> DataLoader:
        return loader(self.parts[self._part()])

    def val_dataloader(self) -> Any:
        return loader((self.validated or self.parts)[self._part()])

    def _part(self) -> int:
        # Under tensor parallelism processes share their rows.
        return int(self.trainer.distributed_sampler_kwargs["rank"]) if self.trainer.world_size > 1 else 0


class Logged(pl.Callback):
    """The loss that was logged at each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        if trainer.global_step > len(self.losses):
            self.losses.append(trainer.callback_metrics["train_loss"].item())


def gradients_of(module: nn.Module) -> Gradients:
    """Of all trained parameters, put together from their parts."""
    return {
        clean_name(name): whole(value.grad).detach().clone()
        for name, value in module.named_parameters()
        if value.grad is not None
    }


class Start(pl.Callback):
    """Gives the adapter's B values, by name, so that every gradient is of some size."""

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        start_values(module)


@torch.no_grad()
def start_values(module: nn.Module) -> None:
    """The same in every model and process."""
    for number, (_, layer) in enumerate(adapter_layers(module)):
        generator = torch.Generator().manual_seed(number)
        for value in (layer.pera_A, layer.pera_B, layer.pera_h):
            value.copy_(like(value, 0.2 * torch.randn(value.shape, generator=generator)))


def like(value: Any, whole: Tensor) -> Any:
    """A tensor distributed as another."""
    if not hasattr(value, "placements"):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, value.device_mesh, value.placements)


def fit(folder: Path, module: Any, *callbacks: pl.Callback, **options: Any) -> dict[str, Any]:
    """One epoch; the gradients of every step and what was logged."""
    logged = Logged()
    adapter = PeraCallback(2, adapter_dir=str(folder / "adapter"), skip_checks=["learning_rate"])
    settings = {"max_epochs": 1, "limit_val_batches": 0, "enable_checkpointing": False, **options}
    trainer = cpu_trainer(folder, adapter, Start(), logged, *callbacks, use_distributed_sampler=False, **settings)
    trainer.fit(module)
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
    return {"steps": module.steps, "losses": logged.losses, "metrics": metrics}


def right(folder: Path, rows: list[int], clip: float | None = None) -> tuple[Gradients, float]:
    """Gradient and value of the mean loss over all answer tokens of some rows; each by itself, by plain torch."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    inject_adapter(model, PeraConfig(2))
    start_values(model)
    losses = []
    for row in rows:
        batch = batches_of([row], 1)[0]
        logits = model(batch["input_ids"]).logits[0, :-1]
        losses.append(F.cross_entropy(logits, batch["labels"][0, 1:], reduction="sum"))
    loss = torch.stack(losses).sum() / sum(TOKENS[row] for row in rows)
    loss.backward()
    clip_by_hand(model, clip)
    return {f"model.{name}": value for name, value in gradients_of(model).items()}, loss.item()


def clip_by_hand(model: nn.Module, clip: float | None) -> None:
    """Scale the gradients of a model to a norm."""
    gradients = [value.grad for value in model.parameters() if value.grad is not None]
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    assert clip is None or norm > 2 * clip
    for gradient in gradients:
        gradient *= 1 if clip is None else clip / norm


class Foreign(Recording, pl.LightningModule):
    """Somebody's classifier of tokens, with the public helper and without adapters."""

    def __init__(self, parts: list[list[int]]) -> None:
        super().__init__()
        self.parts = parts
        self.net = linear_net()
        self.accumulation = WeightedAccumulation(self, "train_loss")

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.net(batch["x"]), batch["y"], ignore_index=-100)
        return self.accumulation.weigh(loss, (batch["y"] != -100).sum())

    def train_dataloader(self) -> DataLoader:
        return loader([foreign_batch(length) for length in self.parts[self.trainer.global_rank]])


class ByHand(Foreign):
    """Calls backward, clips and steps itself, after every second batch."""

    def __init__(self, parts: list[list[int]], clip: float | None = None) -> None:
        super().__init__(parts)
        self.automatic_optimization = False
        self.clip = clip

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        self.manual_backward(super().training_step(batch, batch_idx))
        if batch_idx % 2:
            if self.clip is not None:
                self.accumulation.average()
                self.clip_gradients(optimizer, self.clip)
            optimizer.step()
            optimizer.zero_grad()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.steps.append(gradients_of(self))


def linear_net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4))


def foreign_batch(length: int) -> dict[str, Tensor]:
    """As many labelled tokens, and three without a label."""
    generator = torch.Generator().manual_seed(100 + length)
    y = torch.randint(4, (length,), generator=generator)
    return {"x": torch.randn(length + 3, 5, generator=generator), "y": torch.cat([y, torch.full((3,), -100)])}


def right_foreign(lengths: list[int], clip: float | None = None) -> tuple[Gradients, float]:
    """Of one batch of all tokens."""
    net = linear_net()
    x, y = (torch.cat([foreign_batch(length)[name] for length in lengths]) for name in "xy")
    loss = F.cross_entropy(net(x)[y >= 0], y[y >= 0])
    loss.backward()
    clip_by_hand(net, clip)
    return {f"net.{name}": value for name, value in gradients_of(net).items()}, loss.item()


def fit_foreign(folder: Path, module: pl.LightningModule, **options: Any) -> dict[str, Any]:
    """One epoch without PeraCallback."""
    logged = Logged()
    settings = {"max_epochs": 1, "enable_checkpointing": False, **options}
    trainer = cpu_trainer(folder, logged, use_distributed_sampler=False, **settings)
    trainer.fit(module)
    return {"steps": module.steps, "losses": logged.losses}


def ddp() -> DDPStrategy:
    return DDPStrategy(process_group_backend="gloo")


# Rows of the two processes; in fours of single rows the last step has two of them each, in pairs one.
PARTS = [[0, 1, 2], [3, 4, 5]]


def parts(size: int) -> list[Batches]:
    return [batches_of(rows, size) for rows in PARTS]


def main(folder: Path) -> None:
    from tests.support.fsdp import OnCPU

    model = folder / "model"
    # Fifteen tokens, of which the mean over two processes is no whole number.
    validated = [batches_of([0, 1], 1), batches_of([4], 1)]

    def run(name: str, module: Any, **options: Any) -> None:
        fits = fit if isinstance(module, PeraCausalLM) else fit_foreign
        torch.save(fits(folder / "run", module, processes=2, **options), folder / f"{name}-{RANK}.pt")

    twos = {"accumulate_grad_batches": 2, "limit_val_batches": 2}
    run("ddp 2", Recorded(model, parts(1), validated), strategy=ddp(), num_sanity_val_steps=0, **twos)
    run("ddp 1", Recorded(model, parts(3)), strategy=ddp())
    run("ddp clipped", Recorded(model, parts(1)), strategy=ddp(), accumulate_grad_batches=3, gradient_clip_val=0.01)
    run("ddp empty", Foreign([[3, 0], [0, 0]]), strategy=ddp(), accumulate_grad_batches=2)
    run("ddp foreign", Foreign([[3, 9], [1, 4]]), strategy=ddp(), accumulate_grad_batches=2)
    run("by hand", ByHand([[3, 9], [1, 4]], clip=0.01), strategy=ddp())
    run("fsdp1 2", Recorded(model, parts(1)), strategy=OnCPU(), accumulate_grad_batches=2)
    clipped = {"accumulate_grad_batches": 3, "gradient_clip_val": 0.01}
    run("fsdp2 clipped", Recorded(model, parts(1)), strategy=ModelParallelStrategy(2, 1), **clipped)
    run("fsdp2 2", Recorded(model, parts(1)), strategy=ModelParallelStrategy(2, 1), accumulate_grad_batches=2)
    run("tensor 2", Recorded(model, parts(1)), strategy=ModelParallelStrategy(1, 2), accumulate_grad_batches=2)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
