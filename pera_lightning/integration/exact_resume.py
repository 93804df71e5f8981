"""Going on from a checkpoint with the same random numbers that the run would have drawn without the interruption."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch.distributed
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from pera_lightning.integration.random_state import random_states, restore_random_states


class ExactResume:
    """Keeps the random states of a checkpoint until the moments at which they belong back.

    The iterator of a shuffling DataLoader draws its seed when it is made. After the end of an epoch the next one is
    made between `on_fit_start` and `on_train_start`; in the middle of an epoch it had been made long before the
    checkpoint, so there the states come back in `on_train_start`, before the next batch is fetched. Lightning itself
    warns of a DataLoader that cannot go on in the middle of an epoch.
    """

    def __init__(self) -> None:
        self._states: list[dict[str, Any]] = []
        self._fit_started = False

    def state_dict(self) -> list[dict[str, Any]]:
        """The random states of every process, in the order of their ranks; collective where there are several."""
        mine = random_states()
        if not _ranks():
            return [mine]
        gathered: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, mine)
        return gathered

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Keep the states for the fit that follows."""
        self._states = states
        # Some strategies load only after on_fit_start.
        if self._fit_started:
            self._restore()

    def on_fit_start(self) -> None:
        """Restore before the Trainer makes the iterator over the training data."""
        self._fit_started = True
        self._restore()

    def on_train_start(self, trainer: pl.Trainer) -> None:
        """Restore before the next batch of an epoch that had begun."""
        progress = trainer.fit_loop.epoch_loop.batch_progress
        if self._states and progress.current.ready and not progress.is_last_batch:
            self._restore()
        self.forget()

    def forget(self) -> None:
        """A later fit of the same Trainer is none that resumes."""
        self._states, self._fit_started = [], False

    def _restore(self) -> None:
        if not self._states:
            return
        rank, ranks = _ranks() or (0, 1)
        if ranks != len(self._states):
            rank_zero_warn(
                f"The checkpoint was written by {len(self._states)} processes and training goes on in {ranks}: the "
                "random numbers (dropout, shuffling) will differ from those of an uninterrupted run. Resume with as "
                "many processes to get the same."
            )
        if rank < len(self._states):
            restore_random_states(self._states[rank])


def _ranks() -> tuple[int, int] | None:
    """Rank and number of the processes that train together; None for a single one."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    return torch.distributed.get_rank(), torch.distributed.get_world_size()
