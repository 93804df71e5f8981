"""Checks of options."""

from __future__ import annotations

import math
from typing import Any

from pera_lightning.errors import ConfigError, shown


def one_of(name: str, value: Any, choices: tuple[Any, ...]) -> Any:
    """Return `value` if it is one of `choices`, else raise ConfigError."""
    return _checked(name, value, value in choices, f"one of {', '.join(map(str, choices))}")


def positive(name: str, value: float) -> float:
    """Return `value` if it is a finite number above 0, else raise ConfigError."""
    valid = isinstance(value, int | float) and math.isfinite(value) and value > 0
    return _checked(name, value, valid, "a finite number above 0")


def between(name: str, value: float, low: float, high: float) -> float:
    """Return `value` if it is in [low, high), else raise ConfigError."""
    valid = isinstance(value, int | float) and low <= value < high
    return _checked(name, value, valid, f"a number in [{low}, {high})")


def count(name: str, value: int, *, least: int) -> int:
    """Return `value` if it is a whole number of at least `least`, else raise ConfigError."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return _checked(name, value, whole and value >= least, f"a whole number, at least {least}")


def check_flags(**values: object) -> None:
    """Raise ConfigError unless all of them are True or False: a text such as "no" or "false" would count as true."""
    for name, value in values.items():
        _checked(name, value, isinstance(value, bool), "True or False")


def _checked(name: str, value: Any, valid: bool, expected: str) -> Any:
    if not valid:
        raise ConfigError(f"{name} cannot have this value.", got=shown(value), expected=expected, fix=f"change {name}")
    return value
