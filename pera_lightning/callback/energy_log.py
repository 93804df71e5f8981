"""The share of the polynomial part in a run's logs."""

from __future__ import annotations

import lightning.pytorch as pl

from pera_lightning.analysis.energy import mean_energy_tensor


class EnergyLog:
    """Logs `pera_energy` after every so many optimizer steps, as a tensor that no step waits for."""

    def __init__(self) -> None:
        # The optimizer step after which it was last decided.
        self._step = 0

    def on_train_start(self, trainer: pl.Trainer) -> None:
        """Take note of where a run begins, which may be a resumed one."""
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, every: int | None) -> None:
        """Log the energy if it is due.

        Args:
            trainer: The Trainer.
            pl_module: The module with the adapters.
            every: Number of steps from one to the next; None: as often as the Trainer logs; 0: never.
        """
        every = getattr(trainer, "log_every_n_steps", 0) if every is None else every
        # Batches whose gradients are accumulated change nothing.
        stepped, self._step = trainer.global_step != self._step, trainer.global_step
        if every and stepped and trainer.global_step % every == 0:
            pl_module.log("pera_energy", mean_energy_tensor(pl_module), rank_zero_only=True)
