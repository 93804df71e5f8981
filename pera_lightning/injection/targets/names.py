"""Module names: cleaning them of wrappers, matching patterns, finding near names for messages."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator

from torch import nn

from pera_lightning.layers import PeraLinear, TokenRowsLayer

WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Name components that torch.compile, FSDP and activation checkpointing put between a user's names."""

BELOW = "base_layer"
"""Where an adapted layer keeps its base; a user's own module may be called the same."""


def clean_name(name: str) -> str:
    """A dotted name without the components that wrappers add, so that files fit with and without them."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


APART = "_pera_apart"
"""Attribute of a module inside another one that is none of its adapter's, whatever adapters it has."""


def own_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """As `named_modules`, without what is set apart in the model."""
    apart: list[str] = []
    for name, module in model.named_modules():
        if APART in vars(module) and module is not model:
            apart.append(name)
        elif not within_any(name, apart):
            yield name, module


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, PeraLinear]]:
    """The adapted layers of a model with their clean names; a shared layer comes once."""
    for name, module in own_modules(model):
        if isinstance(module, PeraLinear):
            yield clean_name(name), module


def is_adapted(model: nn.Module) -> bool:
    """Whether a model holds adapted layers."""
    return any(True for _ in adapted_layers(model))


def token_layers(model: nn.Module) -> Iterator[tuple[str, TokenRowsLayer]]:
    """The layers of a model with trained token rows; of those that share them the first one."""
    seen = set()
    for name, module in own_modules(model):
        if isinstance(module, TokenRowsLayer) and id(module.token_rows) not in seen:
            seen.add(id(module.token_rows))
            yield clean_name(name), module


def adapter_layers(model: nn.Module) -> Iterator[tuple[str, PeraLinear | TokenRowsLayer]]:
    """Everything that computes beside its base: the adapted layers, then those with trained token rows."""
    yield from adapted_layers(model)
    yield from token_layers(model)


def original_names(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a model with the clean names of before the injection; a base has that of its adapted layer."""
    seen: dict[str, tuple[str, nn.Module]] = {}
    for name, module in own_modules(model):
        above, _, own = name.rpartition(".")
        original, parent = seen.get(above, ("", module))
        if own not in WRAPPERS and not (own == BELOW and isinstance(parent, PeraLinear | TokenRowsLayer)):
            original = f"{original}.{own}" if original else own
        seen[name] = original, module
        yield original, module


def has_suffix(name: str, suffix: str) -> bool:
    """Whether `name` ends with `suffix` by whole components."""
    return name == suffix or name.endswith("." + suffix)


def block_template(name: str) -> tuple[str, ...]:
    """A name with its numbers left open: the same for all blocks of a row."""
    *path, last = name.split(".")
    return (*("*" if part.isdigit() else part for part in path), last)


def parents(name: str) -> Iterator[str]:
    """The names of what contains a module, from the outermost one; not its own."""
    end = name.find(".")
    while end >= 0:
        yield name[:end]
        end = name.find(".", end + 1)


def within_any(name: str, containers: Iterable[str]) -> bool:
    """Whether `name` is one of the containers or inside one."""
    return any(name == container or name.startswith(container + ".") for container in containers)


def near_names(wanted: str, names: Iterable[str], limit: int = 5) -> str:
    """The names near to `wanted`, for a message: whole names and last components; without any, some that there are."""
    names = [name for name in names if name]
    candidates = list(dict.fromkeys([*(name.rsplit(".", 1)[-1] for name in names), *names]))
    near = difflib.get_close_matches(wanted, candidates, n=limit)
    return ", ".join(near) or f"none; there are {listed(candidates)}"


def listed(names: Collection[str], most: int = 12) -> str:
    """Names for a message, with how many there are where not all are shown."""
    shown = ", ".join(list(names)[:most]) or "none"
    return f"{shown}, ... ({len(names)} in all)" if len(names) > most else shown


def fitting_place(wanted: Iterable[str], names: Iterable[str]) -> str | None:
    """What to load an adapter into whose modules a model lacks: a part of the model, or what the model is a part of.

    Args:
        wanted: Names that the model lacks, all or some.
        names: Those of its modules.

    Returns:
        It as the `fix` of an error; None where the names fit nowhere.
    """
    wanted, present = list(wanted), set(names)
    first = wanted[0]
    for above in parents(first):
        start = f"{above}."
        if all(name.startswith(start) and name.removeprefix(start) in present for name in wanted):
            return f"load the adapter into the module that has this one as its {above!r}, which has these names"
    parts = [name.removesuffix(f".{first}") for name in sorted(present) if name.endswith(f".{first}")]
    fitting = [f"model.{part}" for part in parts if all(f"{part}.{other}" in present for other in wanted)]
    return f"load the adapter into {' or '.join(fitting)}, where its names fit" if fitting else None
