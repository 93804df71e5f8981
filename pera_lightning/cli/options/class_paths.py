"""Options of classes that nobody has named: a `class_path` was left out, or its options do not stand under it.

jsonargparse takes them for options of the base class, and answers that this has none of the name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pera_lightning.cli.options.given import Given
from pera_lightning.errors import ConfigError

_OF_TRAINER = "accelerator|strategy|logger|callbacks|profiler|plugins"
_TAKES_CLASS = re.compile(rf"(model|data|trainer\.(?:{_OF_TRAINER})(?:\.\d+)?)(?:\.(.+))?")
"""What is a class, and one of its options; of a list of classes, the number of one."""
_ENTRY = re.compile(r"\.(\d+)$")
_IN_YAML = "in YAML `class_path: CLASS` and, below it, `init_args:` with the options"
_NO_CLASS = (None, "", "null", "true", "false")


def check_class_paths(given: Sequence[Given]) -> None:
    """Refuse options of a model, of data or of what a Trainer takes as a class, where no class is named.

    Args:
        given: All options, in the order in which they count: a class can be named in an earlier file.

    Raises:
        ConfigError: There are such.
    """
    named: set[str] = set()
    for one in given:
        if one.key == "trainer" and one.value is not None:
            # A file of its own, which may name any class.
            return
        if found := _TAKES_CLASS.fullmatch(one.key):
            owner, option = found.groups()
            if option in (None, "class_path"):
                _note(named, owner, one, replaces=option is None)
            elif one.is_beside_class and "." not in option:
                raise _beside_class(owner, option, one.place)
            elif owner not in named:
                raise missing_class(owner, option, one.place)


def _note(named: set[str], owner: str, given: Given, *, replaces: bool) -> None:
    if replaces:
        named -= {other for other in named if other.startswith(f"{owner}.")}
    if given.value in _NO_CLASS:
        if given.value is not None:
            named.discard(owner)
    else:
        # Options of a list are those of its last class.
        named |= {owner, _ENTRY.sub("", owner)}


def missing_class(owner: str, option: str, place: str) -> ConfigError:
    """The error of an option whose class is not known.

    Args:
        owner: What has to be a class.
        option: Name of the option.
        place: Where it stands.
    """
    return ConfigError(
        f"class_path is missing: no class is named for {_shown(owner)}.",
        got=f"the option {option} ({place})",
        expected=f"--{owner} CLASS before it, or {_IN_YAML}" if not _ENTRY.search(owner) else _IN_YAML,
        fix=f"name the class; `pera_lightning fit --{owner.partition('.')[0]}.help` says what there is",
    )


def _beside_class(owner: str, option: str, place: str) -> ConfigError:
    return ConfigError(
        f"Options of a class stand under init_args: those of {_shown(owner)}.",
        got=f"{option} beside class_path ({place})",
        expected=_IN_YAML,
        fix=f"put {option} under init_args",
    )


def _shown(owner: str) -> str:
    number = _ENTRY.search(owner)
    return f"entry {int(number[1]) + 1} of {owner[: number.start()]}" if number else owner
