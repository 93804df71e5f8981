"""When another process of the run has ended, one plain sentence beside torch's stack of calls."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.distributed import DistError

from pera_lightning.visible_text import visible_logger

_log = visible_logger(__name__)
# gloo raises plain RuntimeErrors; NCCL and the store raise DistErrors.
_GLOO = ("gloo/transport", "Timed out waiting", "Connection closed by peer", "Connection reset by peer", "pair closure")


def explain_lost_worker(trainer: pl.Trainer, exception: BaseException) -> None:
    """Log, on each rank that is left, that another one has ended or is out of reach, and how to go on.

    The exception itself goes its way. Only words are written: whatever needs the other processes would hang.

    Args:
        trainer: In `on_exception`.
        exception: What ends the run.
    """
    if trainer.world_size == 1 or not _is_of_communication(exception):
        return
    _log.error(
        f"PERA: rank {trainer.global_rank} of {trainer.world_size} stops, because another process has ended or is out "
        "of reach. Why is in the log of the first rank that failed, not in the stack below; without an error there, "
        "it was killed: look for the OOM killer (`dmesg`, or the scheduler's log of the job) or a lost host. "
        f"{_how_to_go_on(trainer)}"
    )


def _is_of_communication(exception: BaseException) -> bool:
    return isinstance(exception, DistError) or (
        isinstance(exception, RuntimeError) and any(words in str(exception) for words in _GLOO)
    )


def _how_to_go_on(trainer: pl.Trainer) -> str:
    checkpoints = trainer.checkpoint_callback
    # Rank 0 alone writes, but all ranks keep the names.
    path = trainer.ckpt_path
    if isinstance(checkpoints, ModelCheckpoint):
        path = checkpoints.last_model_path or checkpoints.best_model_path or path
    if not path:
        return "No checkpoint has been written yet: start the run again."
    return f"Start all processes again with fit(ckpt_path={str(path)!r}) to go on from the last checkpoint."
