"""What values from files have to be: small checks that are put together to a schema.

A check takes a value and where it stands, and returns the value in the form that the library works with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pera_lightning.errors import shown
from pera_lightning.form_bounds import MAX_NAME, is_number, is_whole

Check = Callable[[Any, str], Any]


class SchemaError(ValueError):
    """A value is not what it has to be.

    Args:
        where: Name of the field.
        value: What it is.
        expected: What it would have to be.
    """

    def __init__(self, where: str, value: object, expected: str) -> None:
        super().__init__(f"{where} is {shown(value)}")
        self.expected = expected


def text(most: int = MAX_NAME, least: int = 1) -> Check:
    """A text of so many characters."""

    def check(value: Any, where: str) -> str:
        if not isinstance(value, str) or not least <= len(value) <= most:
            raise SchemaError(where, value, f"a text of {least} to {most:,} characters")
        return value

    return check


def module_name(value: Any, where: str) -> str:
    """A name as of `named_modules`, not empty and without the parts that wrappers add."""
    text()(value, where)
    if not all(value.split(".")):
        raise SchemaError(where, value, "a module's name: parts with dots between them, none of them empty")
    return value


def whole(least: int, most: int) -> Check:
    """A whole number within bounds."""

    def check(value: Any, where: str) -> int:
        if not is_whole(value) or not least <= value <= most:
            raise SchemaError(where, value, f"a whole number from {least:,} to {most:,}")
        return int(value)

    return check


def number(least: float, most: float) -> Check:
    """A number within bounds, as it is."""

    def check(value: Any, where: str) -> float:
        if not is_number(value) or not least <= value <= most:
            raise SchemaError(where, value, f"a number from {least:g} to {most:g}")
        return value

    return check


def flag(value: Any, where: str) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise SchemaError(where, value, "true or false")
    return value


def or_none(check: Check) -> Check:
    """Nothing, or what the check takes."""
    return lambda value, where: None if value is None else check(value, where)


def list_of(check: Check, most: int, least: int = 0) -> Check:
    """So many values that the check takes; a tuple."""

    def check_all(values: Any, where: str) -> tuple[Any, ...]:
        if not isinstance(values, list | tuple) or not least <= len(values) <= most:
            raise SchemaError(where, values, f"a list of {least} to {most:,}")
        return tuple(check(value, f"{where}[{index}]") for index, value in enumerate(values))

    return check_all


def mapping_of(check: Check, most: int, least: int = 0, name: Check | None = None) -> Check:
    """Names of modules, or what `name` takes, each with what the check takes; a dict."""
    check_name = name or module_name

    def check_all(values: Any, where: str) -> dict[str, Any]:
        if not isinstance(values, Mapping) or not least <= len(values) <= most:
            raise SchemaError(where, values, f"an object with {least} to {most:,} entries")
        return {
            check_name(key, f"a name in {where}"): check(value, f"{where}[{shown(key)}]")
            for key, value in values.items()
        }

    return check_all


def fields(required: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    """An object with these fields; others are left out. Optional ones that are missing stay so."""
    checks = {**required, **(optional or {})}

    def check_all(values: Any, where: str) -> dict[str, Any]:
        if not isinstance(values, Mapping):
            raise SchemaError(where, values, "an object")
        missing = [name for name in required if name not in values]
        if missing:
            raise SchemaError(where, values, f"an object with {missing[0]!r}")
        prefix = f"{where}." if where else ""
        return {name: check(values[name], f"{prefix}{name}") for name, check in checks.items() if name in values}

    return check_all
