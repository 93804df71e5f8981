"""The errors users catch. Every message says what we got, what we expected and how to fix it."""

from __future__ import annotations

from typing import Any


class PeraError(Exception):
    """Base class of everything pera_lightning raises on purpose.

    Args:
        what: One sentence naming what went wrong.
        got: What was given or found.
        expected: What would have been right.
        fix: What the user can do about it.
    """

    def __init__(self, what: str, *, got: object, expected: object, fix: object) -> None:
        super().__init__(f"{what}\n  got:      {got}\n  expected: {expected}\n  fix:      {fix}")
        self._arguments = {"what": what, "got": str(got), "expected": str(expected), "fix": str(fix)}

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions with keyword-only arguments do not unpickle by themselves, and errors
        # raised in a worker process or a DDP rank travel by pickle.
        return _rebuild, (type(self), self._arguments)


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

    It is an error of each of the classes that were raised for this before.
    """
