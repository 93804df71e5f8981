"""Ctrl-C in a comparison: it ends, and says how to go on."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from pera_lightning.cli.screen import tell

STOPPED = 130
"""What a shell returns for a command that Ctrl-C ended."""


@contextlib.contextmanager
def told_interrupts() -> Iterator[None]:
    """Say after Ctrl-C that the same command goes on, and leave.

    Raises:
        SystemExit: It was pressed.
    """
    try:
        with _kept_interrupts() as pressed:
            yield
    except KeyboardInterrupt:
        pass
    except SystemExit:
        # Lightning leaves so when it was pressed in a training.
        if not pressed:
            raise
    if pressed:
        tell("Interrupted. Runs that are finished are kept; the same command goes on with the others.")
        raise SystemExit(STOPPED)


@contextlib.contextmanager
def _kept_interrupts() -> Iterator[list[int]]:
    """Remember Ctrl-C: raised within a destructor or a callback of C code, Python prints the exception and goes on.

    Yields:
        The signals that have come; `raise_swallowed` looks at them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield _pressed
        return
    earlier = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: Any) -> None:
        _pressed.append(number)
        if callable(earlier):
            earlier(number, frame)

    _pressed.clear()
    signal.signal(signal.SIGINT, note)
    try:
        yield _pressed
    finally:
        signal.signal(signal.SIGINT, earlier)


_pressed: list[int] = []


def raise_swallowed() -> None:
    """Raise KeyboardInterrupt if Ctrl-C was pressed and nothing has come of it."""
    if _pressed:
        raise KeyboardInterrupt
