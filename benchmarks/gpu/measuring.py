"""A plan is measured row by row; what fails leaves its reason, and the next one follows."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from benchmarks.gpu import estimated_memory, largest_batch, step_time, token_latency
from benchmarks.gpu.card import ran_out
from benchmarks.gpu.plan import Row
from benchmarks.gpu.session import Session, SkippedError

Rows = list[dict[str, Any]]
Measure = Callable[[Session, dict[str, Any]], dict[str, Any]]
PARTS: dict[str, Measure] = {
    "step": step_time.measure,
    "decode": token_latency.measure,
    "batch": largest_batch.measure,
    "compile": step_time.measure_compiled,
    "estimate": estimated_memory.measure,
}
UNREACHED = "not reached: the run ended before"
LONGEST = 300
"""Characters of an error's text that are kept."""


class OutOfTimeError(BaseException):
    """The time of the run is over. No Exception: a library's handler is not to keep it."""


class Budget:
    """The time of a run.

    Args:
        seconds: From now on.
        clock: `time.monotonic`.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + seconds

    @property
    def left(self) -> float:
        """Seconds."""
        return self._end - self._clock()


def run(
    plan: Sequence[Row], session: Session, budget: Budget, save: Callable[[Rows], None]
) -> Iterator[dict[str, Any]]:
    """Measure all rows, as far as the time goes, and yield each when it is measured.

    Each has its `figures` then, or the `reason` why it has none.

    Args:
        plan: The rows, in their order.
        session: Where they are measured.
        budget: What time there is.
        save: Gets all rows, before the first and after each.
    """
    rows: Rows = [{"part": row.part, "name": row.name, "settings": row.settings, "reason": UNREACHED} for row in plan]
    save(rows)
    for row, planned in zip(rows, plan, strict=True):
        del row["reason"]
        start = time.monotonic()
        row |= outcome(planned, session, budget)
        row["took_s"] = round(time.monotonic() - start, 1)
        if "reason" in row:
            # What failed may have left anything behind.
            session.forget()
        save(rows)
        yield row


def outcome(planned: Row, session: Session, budget: Budget) -> dict[str, Any]:
    """What a row comes to: its figures, or the reason why there are none."""
    left = budget.left
    if left <= planned.seconds:
        return {"reason": f"not reached: {max(0, left):.0f} s were left, and it takes {planned.seconds:g} s at least"}
    try:
        with _alarm(left):
            return {"figures": PARTS[planned.part](session, planned.settings)}
    except SkippedError as error:
        return {"reason": str(error)}
    except OutOfTimeError:
        return {"reason": f"not finished: the time was over after {left:.0f} s"}
    except Exception as error:  # whatever it is: the other rows are to be measured
        kind = "out of memory" if ran_out(error) else "failed"
        return {"reason": f"{kind}: {type(error).__name__}: {str(error)[:LONGEST]}"}


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Within it, the end of the time is an error."""

    def ring(*_: object) -> None:
        raise OutOfTimeError

    before = signal.signal(signal.SIGALRM, ring)
    # Somebody else's alarm goes on afterwards.
    other, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, other)
        signal.signal(signal.SIGALRM, before)
