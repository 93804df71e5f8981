"""The errors for a pattern that matches no layer: what it matches instead, and what may have been meant."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import nn

from pera_lightning.base_layers import describe_supported
from pera_lightning.errors import TargetError
from pera_lightning.injection.targets.names import has_suffix, listed, near_names

Matches = Callable[[str, str], bool]
"""Whether an expression, given first, matches the whole of a name."""


def names_no_layer(field: str, pattern: str, named: str, kind: type[nn.Module], inside: list[str]) -> TargetError:
    """The error for a pattern that names a module which is none of the layers.

    Args:
        field: The option.
        pattern: What it holds.
        named: The first module that it names.
        kind: Of that module.
        inside: Names of the layers in it.
    """
    whole = f"{re.escape(named)}\\..*"
    return TargetError(
        f"{field} names a module that is no linear layer.",
        got=f"{pattern!r}, which is {named!r} of kind {kind.__name__}",
        expected=f"layers of kind {describe_supported()}",
        fix=f"name layers inside it: {listed(inside)}; all of them: the one string {whole}"
        if inside
        else "name other layers",
    )


def matches_no_module(
    field: str, pattern: str, candidates: Mapping[str, nn.Module], modules: Mapping[str, nn.Module]
) -> TargetError:
    """The error for a name, or the suffix of one, that no module has.

    Args:
        field: The option.
        pattern: What it holds.
        candidates: What it may name.
        modules: All modules.
    """
    expected = "a name suffix by whole components, or (as one string) a regular expression for whole names"
    weight = next((name for name in _weights(modules) if _is_meant(pattern, name)), None)
    if weight is not None:
        owner = weight.rpartition(".")[0]
        is_layer = owner in candidates
        return TargetError(
            f"{field} names a parameter and no module.",
            got=f"{pattern!r}, and {weight!r} is a parameter of a {type(modules[owner]).__name__}",
            expected=expected,
            fix=f"name its layer: {owner}"
            if is_layer
            else f"leave it out: adapters are put into layers; modules_to_save=[{owner!r}] trains all of it",
        )
    return TargetError(
        f"{field} holds a pattern that matches no module.",
        got=repr(pattern),
        expected=expected,
        fix=f"name them one by one: a list is written [{pattern}] in YAML and on the command line"
        if _is_list(pattern)
        else f"correct the name; near names in this model: {near_names(pattern, candidates or modules)}",
    )


def refuse_match_in_part(field: str, pattern: str, candidates: Mapping[str, nn.Module]) -> None:
    """Raise TargetError if an expression that matches no whole name matches a part of some.

    Args:
        field: The option.
        pattern: What a user typed there.
        candidates: What it may match.
    """
    found = [name for name in candidates if re.search(pattern, name)]
    # Flags stand at the beginning of an expression only.
    if not found or pattern.startswith("(?") or _is_list(pattern):
        return
    part = f"({pattern})" if "|" in pattern else pattern
    # Whole components first: blocks\.1 is a part of blocks.10 too.
    wider = (rf".*\.{part}", rf"{part}\..*", rf".*\.{part}\..*", rf".*{part}", rf".*{part}.*")
    cures = ((cure, sum(re.fullmatch(cure, name) is not None for name in candidates)) for cure in wider)
    cure, count = next((cure, count) for cure, count in cures if count)
    raise TargetError(
        f"{field} holds an expression that matches a part of names, and no whole one.",
        got=f"{pattern!r}, which matches in {len(found)} names: {listed(found, 3)}",
        expected="a regular expression for whole names, or a list of name suffixes",
        fix=f"write it for whole names: {cure} matches {count} of the {len(candidates)} layers",
    )


def _weights(modules: Mapping[str, nn.Module]) -> list[str]:
    return [f"{name}.{own}" for name, part in modules.items() for own, _ in part.named_parameters(recurse=False)]


def _is_meant(pattern: str, weight: str) -> bool:
    """Whether a pattern is the name of a parameter, or of a packed one's layer as other libraries call it: in_proj."""
    return has_suffix(weight, pattern) or has_suffix(weight, f"{pattern}_weight")


def _is_list(pattern: str) -> bool:
    """Whether a text that is no regular expression to speak of holds names between commas."""
    return "," in pattern and all(part.strip().replace(".", "_").isidentifier() for part in pattern.split(","))
