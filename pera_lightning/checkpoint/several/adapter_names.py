"""The names under which a set holds its adapters."""

from __future__ import annotations

from collections.abc import Collection

from pera_lightning.errors import ConfigError
from pera_lightning.injection.targets.names import near_names


def check_known(name: str, names: Collection[str]) -> None:
    """Raise ConfigError unless a set holds an adapter of this name.

    Args:
        name: Which one.
        names: Those it holds.
    """
    if name not in names:
        raise ConfigError(
            "The set holds no adapter of this name.",
            got=repr(name),
            expected=f"one of {_listed(names)}",
            fix=f"near names: {near_names(str(name), names)}; load(name, folder) adds one",
        )


def check_new(name: str, names: Collection[str]) -> None:
    """Raise ConfigError unless an adapter can enter a set under this name.

    Args:
        name: Which one.
        names: Those it holds.
    """
    if not isinstance(name, str) or not name:
        raise ConfigError(
            "An adapter needs a name.", got=repr(name), expected="a non-empty string", fix="name it by its task"
        )
    if name in names:
        raise ConfigError(
            "The set holds an adapter of this name already.",
            got=f"{name!r}; there are {_listed(names)}",
            expected="a new name",
            fix="replace(name, folder) for other values of the same form, or remove(name) first",
        )


def _listed(names: Collection[str]) -> str:
    return ", ".join(map(repr, names)) or "no adapters"
