"""A GradScaler that leaves out step after step is told."""

from __future__ import annotations

from typing import Any

from pera_lightning.callback.finite.diverged import diverged
from pera_lightning.callback.finite.late_number import LateNumbers
from pera_lightning.run_log.messages import rank_zero_warn

LONGEST_SEARCH = 40
"""Halved so often, a scale of 65,536 is below every float16 number: no smaller one will help."""
WORTH_TELLING = 5
"""Steps left out in a row at the end of a run."""


class SkippedSteps:
    """Counts the steps that a GradScaler leaves out because their gradients are infinite."""

    def __init__(self) -> None:
        self.in_a_row = 0
        self._noted: LateNumbers | None = None

    def note(self, trainer: Any, scaler: Any, flags: LateNumbers) -> None:
        """Before a step.

        Args:
            trainer: The Trainer.
            scaler: Its GradScaler.
            flags: Whether the gradients are not finite; on a GPU they are read at the next step.

        Raises:
            TrainingError: No step has been made for so long that the scale is not the reason.
        """
        self._count()
        self._noted = flags
        if not flags.late:
            self._count()
        if self.in_a_row >= LONGEST_SEARCH:
            place = f"{self.in_a_row} steps left out in a row until step {trainer.global_step}, at scale "
            raise diverged(trainer, "Gradients at any scale are", f"{place}{scaler.get_scale():.3g}", joint=True)

    def tell(self) -> None:
        """When the training ends: warn if its last steps changed nothing."""
        self._count()
        if self.in_a_row >= WORTH_TELLING:
            rank_zero_warn(
                f"PERA: the last {self.in_a_row} steps were left out, because their gradients were infinite at every "
                "scale that the GradScaler tried; they have trained nothing. Lower the learning rate or use bf16-mixed."
            )

    def _count(self) -> None:
        noted, self._noted = self._noted, None
        if noted is not None:
            self.in_a_row = self.in_a_row + 1 if any(noted.read_all()) else 0
