"""Words that stand behind no option, as the second of a list without brackets or of a text without quotes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from pera_lightning.cli.options.given import CONFIG_OPTIONS, option_name
from pera_lightning.cli.options.signatures import Parameter
from pera_lightning.errors import ConfigError

_OPTION = re.compile(r"-(?!\.?\d)")
"""How an option begins, and no number below zero."""
_LIST = re.compile(r"Sequence|Iterable|list|List|tuple")


def check_stray_words(words: Sequence[str], known: Mapping[str, Parameter]) -> None:
    """Refuse a second word behind an option, and words behind none.

    Args:
        words: Of a command whose options take one value each.
        known: The options there are.

    Raises:
        ConfigError: There are such.
    """
    option, values = "", list[str]()
    for word in (*words, "--"):
        if not _OPTION.match(word):
            values.append(word)
            continue
        if len(values) > bool(option):
            raise _stray(option, values, known)
        option, is_joined, value = word.partition("=")
        values = [value] if is_joined else []


def _stray(option: str, values: Sequence[str], known: Mapping[str, Parameter]) -> ConfigError:
    parameter = known.get(option_name(option), Parameter())
    together = " ".join(values)
    if not option or option in CONFIG_OPTIONS:
        fix = f"{CONFIG_OPTIONS[0]} before each file: {CONFIG_OPTIONS[0]} {values[-1]}"
    elif _LIST.search(parameter.annotation) or "str" not in parameter.annotation:
        fix = f"a list is written {option} [{','.join(values)}]"
    else:
        fix = f"text of several words stands in quotes: {option} '{together}'"
    return ConfigError(
        "A word stands where an option was expected.",
        got=f"{option} {together}".strip(),
        expected="options, and one value behind each",
        fix=fix,
    )
