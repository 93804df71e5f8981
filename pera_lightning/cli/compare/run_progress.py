"""How far a comparison is, over all of its runs."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import Progress
from typing_extensions import override

from pera_lightning.visible_text import visible

if TYPE_CHECKING:
    from pera_lightning.analysis.method_comparison import ComparedRun


class RunProgress(AbstractContextManager["RunProgress"]):
    """A bar over all runs with the time that is left, and a line for each that was made.

    Args:
        total: How many runs are expected, with those that are there already.
    """

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0
        # Bound to the screen: what a run in this process prints is kept in a file.
        self._bar = Progress(*Progress.get_default_columns(), console=Console(file=sys.stdout))
        self._task = self._bar.add_task("runs", total=total)

    @override
    def __enter__(self) -> Self:
        self._bar.start()
        return self

    @override
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def expect(self, further: int) -> None:
        """Change how many runs are expected."""
        self._total += further
        self._bar.update(self._task, total=self._total)

    def skip(self, runs: int) -> None:
        """Leave out runs that are there already: the time that is left follows from those that are made."""
        self.expect(-runs)

    def tell(self, run: ComparedRun) -> None:
        """Show a run that was made."""
        self._done += 1
        values = "diverged" if run.diverged else f"validation {run.selection:.4f}, test {run.report:.4f}"
        line = f"{run.method}, learning rate {run.learning_rate:g}, seed {run.seed}: {values}"
        self._bar.console.print(visible(f"{line} ({self._done} of {self._total})"), markup=False, emoji=False)
        self._bar.advance(self._task)
