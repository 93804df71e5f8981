"""What a run is refused for: that training goes on only where it makes sense."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from torch import Tensor

from pera_lightning.checkpoint import Manifest
from pera_lightning.checkpoint.comparison import base_difference, form_difference, quantization_difference
from pera_lightning.errors import CheckpointError, TrainingError
from pera_lightning.injection import InjectionReport, adapter_parameters


def refuse_other_form(stored: Manifest, present: Manifest) -> None:
    """Raise CheckpointError if a checkpoint holds an adapter of other options, layers or ranks."""
    difference = form_difference(stored, present)
    if difference:
        raise CheckpointError(
            "The checkpoint was written with other adapter options.",
            got=difference,
            expected="the options of the run that wrote it",
            fix="set them in PeraCallback, or start a new run",
        )


def refuse_other_base(stored: Manifest, present: Manifest) -> None:
    """Raise CheckpointError if a checkpoint holds an adapter of another base."""
    difference = quantization_difference(stored, present) or base_difference(stored, present)
    if difference:
        raise CheckpointError(
            "The checkpoint was written with another base.",
            got=difference,
            expected="the base of the run that wrote it",
            fix="load the base as in that run (where it is drawn at random, with the same seed); to put an "
            "adapter on another base on purpose, load_adapter(model, folder, allow_other_base=True)",
        )


def refuse_lost_adapters(report: InjectionReport | None) -> None:
    """Raise CheckpointError if the adapters that `report` tells of would be injected once more."""
    if report is not None:
        raise CheckpointError(
            "The trained adapters are gone: the model was built anew.",
            got="a model without adapters in a second run of the same callback",
            expected="the model of the first run",
            fix="build the model only once: `if self.model is None:` in setup() or configure_model(); "
            "for another module make another PeraCallback",
        )


def refuse_infinite_loss(trainer: pl.Trainer, loss: Tensor) -> None:
    """Raise TrainingError before a loss that is not finite reaches the weights."""
    if not torch.isfinite(loss).all():
        raise TrainingError(
            "The loss is not finite; training stops before the weights take harm.",
            got=f"loss {loss.detach().float().mean().item()} at step {trainer.global_step}, "
            f"epoch {trainer.current_epoch}",
            expected="a finite loss",
            fix="lower the learning rate or coefficient_scale, warm up longer, clip gradients "
            "(Trainer(gradient_clip_val=1.0)), or use bf16 instead of fp16; the last checkpoint is good",
        )


def refuse_thawed_base(pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer) -> None:
    """Raise TrainingError before the optimizer steps a parameter of the base."""
    stepped = {id(value) for group in optimizer.param_groups for value in group["params"] if value.grad is not None}
    adapter = {id(value) for value in adapter_parameters(pl_module)}
    thawed = [name for name, value in pl_module.named_parameters() if id(value) in stepped - adapter]
    if thawed:
        raise TrainingError(
            "A parameter of the frozen base is about to be trained; checkpoints would not hold it.",
            got=f"{len(thawed)} base parameters with gradients, e.g. {thawed[0]!r}",
            expected="gradients for the adapter and modules_to_save only",
            fix="do not set requires_grad on the base (toggle only parameters that are trainable), or name what is "
            "to be trained in modules_to_save",
        )
