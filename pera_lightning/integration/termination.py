"""What happens when the system asks a run to end (SIGTERM): preemptible machines, job schedulers, containers."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_info

# "last" at the beginning lets `ckpt_path="last"` find it, where the ModelCheckpoint has the same folder again.
FILE_NAME = "last-sigterm.ckpt"


def save_before_termination(trainer: pl.Trainer, exception: BaseException) -> None:
    """Write a checkpoint beside those of the run, if SIGTERM ends it; Lightning lets the present batch end before.

    Without a ModelCheckpoint that has a folder nothing is written: the user wants no checkpoints.

    Args:
        trainer: In `on_exception`.
        exception: What ends the run.
    """
    checkpoints = trainer.checkpoint_callback
    if not isinstance(exception, SIGTERMException) or not isinstance(checkpoints, ModelCheckpoint):
        return
    if not checkpoints.dirpath or getattr(trainer, "fast_dev_run", False):
        return
    path = Path(checkpoints.dirpath) / FILE_NAME
    trainer.save_checkpoint(path)
    rank_zero_info(f"PERA: SIGTERM; checkpoint written. fit(ckpt_path={str(path)!r}) goes on from it.")
