"""Imports of many modules at once, without what Python would do beside them in vain."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Around imports: no garbage is looked for among what they make, then or later.

    All of it stays as long as the process, and with torch and lightning it is a million objects: to look through them
    time and again takes a sixth of the start.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
