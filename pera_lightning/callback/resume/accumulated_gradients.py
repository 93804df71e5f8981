"""Gradients that wait for more batches before the optimizer steps."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from pera_lightning.functional.distributed import own_part
from pera_lightning.injection import clean_name
from pera_lightning.models.accumulation.weighted_accumulation import WeightedAccumulation
from pera_lightning.run_log.messages import rank_zero_warn


def accumulated_gradients(trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Tensor]:
    """The gradients that a run which goes on from here would need; empty where the optimizer has just stepped.

    With manual optimization only the user's code knows that, so they are always kept.

    Returns:
        Parameter name -> gradient, on the CPU; of a sharded parameter this process's part.
    """
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress
    # Not `ready`: a batch that failed is done again.
    done = batches.current.processed
    epoch_done = batches.is_last_batch and done == batches.current.ready
    waiting = done % trainer.accumulate_grad_batches != 0 and not epoch_done
    if pl_module.automatic_optimization and not waiting:
        return {}
    return {
        clean_name(name): own_part(parameter.grad.detach()).cpu()
        for name, parameter in pl_module.named_parameters()
        if parameter.requires_grad and parameter.grad is not None
    }


def accumulated_weights(pl_module: pl.LightningModule) -> dict[str, Tensor | None] | None:
    """What the accumulated gradients are weighed by; None in a module that does not weigh them."""
    accumulation = WeightedAccumulation.of(pl_module)
    return None if accumulation is None else accumulation.window()


def restore_gradients(
    pl_module: pl.LightningModule, gradients: dict[str, Tensor], weights: dict[str, Any] | None
) -> None:
    """Put gradients back where `accumulated_gradients` found them, and what `accumulated_weights` found beside them.

    Gradients of a run that did not weigh them, as those of earlier versions, are left out where now they are weighed.
    """
    accumulation = WeightedAccumulation.of(pl_module)
    if accumulation is not None and weights is not None:
        accumulation.restore(weights)
    elif accumulation is not None and pl_module.automatic_optimization and gradients:
        rank_zero_warn(
            "The checkpoint holds accumulated gradients of a run that did not weigh its batches by their tokens: they "
            "are left out, and the next optimizer step is made with the rest of its batches."
        )
        return
    for name, parameter in pl_module.named_parameters():
        gradient = gradients.get(clean_name(name))
        if gradient is not None:
            parameter.grad = torch.zeros_like(parameter)
            own_part(parameter.grad).copy_(gradient)
