"""Whether the config of a base model is one of its weights: what it says is looked at before transformers builds it."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from pera_lightning.loading.stored_weights import StoredWeights

_LAYERS = re.compile(r"(num|n)_.*layers?|n_layer|(en|de)coder_layers|layers")
_SHARES = re.compile(r".*(dropout|pdrop)(_prob)?")
_WINDOWS = re.compile(r"(.*_)?window(_size)?")
_SMALL = re.compile(r"(.*_)?(eps|epsilon)")
_MOST = 1e30
"""Of a number; products of it are still finite in float32."""
_SPARE = 10_000_000
"""Values of a model that need not be in its files: tables of positions, masks."""


class ConfigDamage(Exception):
    """A config that no model of these weights can have, and why."""


def check_base_config(values: Mapping[str, Any], weights: StoredWeights) -> None:
    """Raise ConfigDamage for a config that a model cannot be built by, or not compute with.

    Args:
        values: The config as plain values.
        weights: What its files hold.
    """
    for name, value in _numbers(values):
        problem = _problem(name.rpartition(".")[2], value, weights)
        if problem:
            raise ConfigDamage(f"its config says {name} = {reprlib.repr(value)}, {problem}")
    for name, value in values.items():
        # transformers compares it with lengths, when the model runs.
        if _WINDOWS.fullmatch(str(name)) and isinstance(value, str):
            raise ConfigDamage(f"its config says {name} = {reprlib.repr(value)}, where a number of tokens is meant")


def check_base_size(build: Callable[[], nn.Module], weights: StoredWeights) -> None:
    """Raise ConfigDamage if a config makes a model that is larger than its files.

    Args:
        build: Makes the model on the meta device.
        weights: What its files hold; nothing is looked at if that is not known.
    """
    if not weights.values:
        return
    model = build()
    found = sum(value.numel() for value in (*model.parameters(), *model.buffers()))
    if found > 2 * weights.values + _SPARE:
        raise ConfigDamage(f"its config makes a model of {found:,} values, and its files hold {weights.values:,}")


def _problem(name: str, value: float, weights: StoredWeights) -> str | None:
    if isinstance(value, float) and not abs(value) <= _MOST:
        return "with which nothing can be computed"
    if _SMALL.fullmatch(name) and not 0 <= value <= 1:
        return "where a small number is added to what is divided by"
    if _SHARES.fullmatch(name) and not 0 <= value <= 1:
        return "where a share is meant"
    if name == "rope_theta" and not 0 < value <= _MOST:
        return "where the base of a power is meant"
    if weights.tensors and _LAYERS.fullmatch(name) and value > weights.tensors:
        return f"and its files hold {weights.tensors:,} tensors"
    return None


def _numbers(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, float]]:
    """All numbers with their names; those in lists, which may be open intervals, are left out."""
    for key, value in values.items():
        name = f"{above}.{key}" if above else str(key)
        if isinstance(value, Mapping):
            yield from _numbers(value, name)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value
