"""Imports of many modules at once, without what Python would do beside them in vain."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Around the first import of torch and lightning: no garbage is looked for among what they make, then or later.

    It stays as long as the process, and is most of a million objects: to look through them time and again takes a
    sixth of the start.
    """
    if "torch" in sys.modules or not gc.isenabled():
        # Then there are objects of others, which may become garbage.
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
