"""Where a resumed run cannot equal the uninterrupted one, a warning says what will differ."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from torch.utils._pytree import tree_leaves

from pera_lightning.run_log.messages import rank_zero_warn


def warn_of_limits(trainer: pl.Trainer, *, within_epoch: bool) -> None:
    """Warn of what no checkpoint holds; of loaders that cannot go on within an epoch Lightning warns itself.

    Args:
        trainer: In `on_train_start` of a run that resumes.
        within_epoch: Whether the run goes on in the middle of an epoch.
    """
    loaders = tree_leaves(trainer.train_dataloader)
    if within_epoch and any(getattr(loader, "num_workers", 0) for loader in loaders):
        rank_zero_warn(
            "The run goes on in the middle of an epoch, and its data is read by worker processes: what they draw at "
            "random (augmentation) will differ from an uninterrupted run until the epoch ends. Use num_workers=0, or "
            "go on from the checkpoint of an epoch's end, to get the same."
        )
    if any(_is_wrapped(loader) for loader in loaders):
        rank_zero_warn(
            "The order of the data will differ from an uninterrupted run: Lightning spreads this loader's own sampler "
            "over the processes, and its random numbers are in no checkpoint. Give the loader a DistributedSampler "
            "(for StatefulDataLoader torchdata's StatefulDistributedSampler) to get the same."
        )
    if any(not hasattr(loader, "load_state_dict") and getattr(loader, "generator", None) for loader in loaders):
        rank_zero_warn(
            "The order of the data will differ from an uninterrupted run: a DataLoader has a generator of its own, "
            "whose state is in no checkpoint. Leave the generator out (the states of torch's own are kept), or use "
            "torchdata's StatefulDataLoader."
        )
    if trainer.strategy.handles_gradient_accumulation and _gradients_wait(trainer):
        rank_zero_warn(
            "The checkpoint was written within an accumulation, and DeepSpeed's gradients are in no checkpoint: the "
            "accumulation begins anew, without the batches since the last optimizer step. Go on from a checkpoint "
            "behind an optimizer step to get the same."
        )
    plateaus = [config for config in trainer.lr_scheduler_configs if config.reduce_on_plateau]
    if any(config.interval == "step" or not within_epoch for config in plateaus):
        # Lightning updates these schedulers after it has written the checkpoint, from a metric that is not in it.
        rank_zero_warn(
            "The checkpoint was written before ReduceLROnPlateau had seen the last metric; that one is left out, so "
            "the learning rate may differ from that of an uninterrupted run."
        )


def _gradients_wait(trainer: pl.Trainer) -> bool:
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress
    # A strategy that accumulates does not step at the end of an epoch: it counts all batches.
    return bool(batches.total.processed % trainer.accumulate_grad_batches)


def _is_wrapped(loader: object) -> bool:
    return isinstance(getattr(getattr(loader, "batch_sampler", None), "sampler", None), DistributedSamplerWrapper)
