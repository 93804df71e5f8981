"""The errors users catch. Every message says what we got, what we expected and how to fix it."""

from __future__ import annotations

import reprlib
from typing import Any

from pera_lightning.visible_text import visible


class PeraError(Exception):
    """Base class of everything pera_lightning raises on purpose.

    Args:
        what: One sentence naming what went wrong.
        got: What was given or found.
        expected: What would have been right.
        fix: What the user can do about it.
    """

    def __init__(self, what: str, *, got: object, expected: object, fix: object) -> None:
        parts = {"what": what, "got": got, "expected": expected, "fix": fix}
        # Names and values in it come from files: they must neither steer a terminal nor look like a further line.
        self._arguments = shown = {name: visible(part) for name, part in parts.items()}
        super().__init__("{what}\n  got:      {got}\n  expected: {expected}\n  fix:      {fix}".format_map(shown))

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions with keyword-only arguments do not unpickle by themselves, and errors
        # raised in a worker process or a DDP rank travel by pickle.
        return _rebuild, (type(self), self._arguments)

    @property
    def cure(self) -> str:
        """What the user can do about it, for a message that has no better one."""
        return self._arguments["fix"]

    @property
    def in_short(self) -> str:
        """What was wrong, on one line of another message, which has a cure of its own."""
        parts = self._arguments
        return f"{parts['what'].rstrip('.')} (got {parts['got']}; expected {parts['expected']})"


def _rebuild(cls: type[PeraError], arguments: dict[str, str]) -> PeraError:
    return cls(arguments["what"], got=arguments["got"], expected=arguments["expected"], fix=arguments["fix"])


class ConfigError(PeraError, ValueError):
    """An option has a value it cannot have."""


class TargetError(PeraError, ValueError):
    """A pattern of target, excluded or saved modules matches nothing, or something that cannot be adapted."""


class InjectionError(PeraError, RuntimeError):
    """The model is not in the state that the operation needs (already adapted, not adapted, merged)."""


class AdapterFileError(PeraError, ValueError):
    """An adapter folder or file is missing, damaged or belongs to another model."""


class CheckpointError(PeraError, RuntimeError):
    """A Lightning checkpoint does not fit the adapters of this run."""


class DataError(PeraError, ValueError):
    """A data file is missing, empty or holds a row that cannot be used."""


class TrainingError(PeraError, RuntimeError):
    """Training cannot go on (for example: the loss is not finite)."""


class ExportError(PeraError, ValueError):
    """The form asked for cannot hold the adapter; nothing was written."""


class FolderError(ConfigError, AdapterFileError, ExportError):
    """A folder to write to is somebody else's, or cannot be written to; what is in it is as it was.

    Where that is not so, the message says that the folder is written, and what is left to do.

    It is an error of each of the classes that were raised for this before.
    """


def one_line(error: BaseException, *, kind: bool = True) -> str:
    """An error as a part of another one's message: without its own cure, and on one line.

    Args:
        error: Ours, or that of a library, which may be of many lines.
        kind: Whether the class of a library's error stands before what it says.
    """
    if isinstance(error, PeraError):
        return error.in_short
    text, name = " ".join(str(error).split()), type(error).__name__
    return (f"{name}: {text}" if kind else text) if text else name


class _Shown(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write down whole numbers of thousands of digits.
        return repr(x) if x.bit_length() <= 256 else f"a whole number of {x.bit_length():,} bits"


_shown = _Shown()
_shown.maxlevel, _shown.maxstring, _shown.maxother = 4, 160, 160
_shown.maxlist = _shown.maxtuple = _shown.maxset = _shown.maxdict = 12


def shown(value: object) -> str:
    """`repr` for messages, of values that may be of any size and depth: long ones are shortened."""
    return _shown.repr(value)
