"""What happens when the system asks a run to end (SIGTERM): preemptible machines, job schedulers, containers."""

from __future__ import annotations

import os
import signal
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from pera_lightning.callback.finite.late_number import LateNumber
from pera_lightning.errors import TrainingError
from pera_lightning.run_log.messages import rank_zero_info, rank_zero_warn

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
    # As Lightning makes its names: it may be a URL.
    path = os.path.join(checkpoints.dirpath, FILE_NAME)
    try:
        trainer.save_checkpoint(path)
    except TrainingError as error:
        # The signal ends the run, whatever else there is to say.
        rank_zero_warn("PERA: SIGTERM; no checkpoint is written.", error)
        return
    rank_zero_info(f"PERA: SIGTERM; checkpoint written. fit(ckpt_path={path!r}) goes on from it.")


class JointTermination:
    """Lets SIGTERM end all processes of a training run after the same batch, whichever of them got it.

    Lightning's signal handler takes part in a collective at whatever moment the signal comes, and each process then
    stops by itself: with unlucky timing they wait for each other until the timeout. Here the handler only remembers the
    signal, and the collective in which Lightning asks the first process before every batch asks all of them. On GPUs,
    which would wait for that, the answer counts one batch later.
    """

    def __init__(self) -> None:
        self._received = False
        self._several = False
        # Where devices are asynchronous: what was asked before the last batch of this epoch.
        self._asked: LateNumber | None = None

    def on_train_start(self, trainer: pl.Trainer) -> None:
        """Take the place of Lightning's handler and of its question, where there are several processes."""
        connector: Any = trainer._signal_connector
        epoch_loop: Any = trainer.fit_loop.epoch_loop
        self._received, self._asked = False, None
        # Lightning asks since 2.6.
        self._several = trainer.world_size > 1 and hasattr(epoch_loop, "_broadcast_sigterm_tensor")
        if not self._several:
            return

        def remember(number: int, frame: Any) -> None:
            launcher = trainer.strategy.launcher
            if not self._received and launcher is not None:
                launcher.kill(signal.Signals(number))
            self._received = True

        def ask_before_batch() -> None:
            # What came between two epochs waits for a batch: a run cannot go on exactly from the begin of an epoch.
            if epoch_loop.batch_progress.current.ready > 0 and self._answer(trainer):
                raise SIGTERMException

        handlers = getattr(signal.getsignal(signal.SIGTERM), "signal_handlers", [])
        handlers[:] = [remember if handler == connector._sigterm_notifier_fn else handler for handler in handlers]
        epoch_loop._broadcast_sigterm_tensor = ask_before_batch

    def on_train_epoch_end(self, trainer: pl.Trainer) -> None:
        """Let Lightning end all processes where the epoch ends."""
        connector: Any = trainer._signal_connector
        self._asked = None
        if self._several:
            connector.received_sigterm = self._ask(trainer).read() > 0

    def _answer(self, trainer: pl.Trainer) -> bool:
        """Whether any process has received the signal, or had before the batch that was the last one; collective."""
        number = self._ask(trainer)
        asked, self._asked = (self._asked, number) if number.late else (number, None)
        return asked is not None and asked.read() > 0

    def _ask(self, trainer: pl.Trainer) -> LateNumber:
        """How many processes have received the signal; collective."""
        # Not from a list, which would have to be copied to the device.
        answer = torch.full((1,), float(self._received), device=trainer.strategy.root_device)
        torch.distributed.all_reduce(answer)
        return LateNumber(answer)
