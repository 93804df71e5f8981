"""What can become of a hostile file, and of a folder whose writer was killed."""

from __future__ import annotations

import traceback
from collections.abc import Iterator

from pera_lightning.errors import PeraError

CLEAN = "refused"
RIGHT = "accepted and right"
OTHER = "other exception"
HANG = "hang"
MEMORY = "memory"
WRONG = "accepted and wrong"
CHANGED = "changed though refused"
RAN = "code ran"
TOUCHED = "files touched"
OUTCOMES = (CLEAN, RIGHT, OTHER, HANG, MEMORY, WRONG, CHANGED, RAN, TOUCHED)
GOOD = (CLEAN, RIGHT)


class Wrong(Exception):
    """A hostile file was accepted, and what came of it is not what it says, or cannot be computed with."""


class Changed(Exception):
    """It was refused, but not before something was changed."""


def of_error(error: BaseException) -> str:
    """The outcome of a call that has raised."""
    if any(map(_lacked_memory, _chain(error))):
        return MEMORY
    if isinstance(error, PeraError):
        return CLEAN
    if isinstance(error, Wrong):
        return WRONG
    return CHANGED if isinstance(error, Changed) else OTHER


def describe(error: BaseException) -> str:
    """The error, and where it was raised if it is none of the package's."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, PeraError | Wrong | Changed):
        return text
    frames = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
    own = [frame for frame in frames if "pera_lightning" in frame]
    return f"{text[:500]} [{', '.join([*own[-3:], *frames[-1:]])}]"


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _lacked_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "Cannot allocate" in str(error)
