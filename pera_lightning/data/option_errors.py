"""Checks of options and the errors they raise."""

from __future__ import annotations

from numbers import Integral
from typing import Any, get_args

from pera_lightning.errors import ConfigError


def check_choice(name: str, value: object, choices: Any) -> None:
    """Raises a `ConfigError` unless the value is one of those of a `Literal`."""
    if value not in get_args(choices):
        raise ConfigError(
            f"{name} has an unknown value.",
            got=repr(value),
            expected=f"one of {', '.join(get_args(choices))}",
            fix=f"set {name} to one of them",
        )


def check_at_least_one(name: str, value: int | None) -> None:
    """Raises a `ConfigError` for anything but a whole number of 1 or more; `None` (not given) passes."""
    if value is not None and (not isinstance(value, Integral) or isinstance(value, bool) or value < 1):
        raise ConfigError(
            f"{name} is too small or no whole number.",
            got=value,
            expected="a whole number, at least 1",
            fix=f"change {name}",
        )


def contradiction(got: str, expected: str) -> ConfigError:
    """Returns the error of two options that cannot both hold."""
    return ConfigError("Two options contradict each other.", got=got, expected=expected, fix="leave one out")
