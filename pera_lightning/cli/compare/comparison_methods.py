"""The methods of a comparison: options of `fit`, or a configuration of PEFT in place of PERA's."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import NamedTuple

from pera_lightning.did_you_mean import did_you_mean, near
from pera_lightning.errors import ConfigError

METHODS = {
    "lora": "--pera.order 1",
    "square": "--pera.order 2 --pera.terms square --pera.coefficient_scale 1.0",
    "cross": "--pera.order 2 --pera.terms cross --pera.coefficient_scale 1.0",
    "full": "--pera.order 2 --pera.terms full --pera.coefficient_scale 1.0",
    "order_3": "--pera.order 3 --pera.terms full --pera.coefficient_scale 1.0",
    "full_auto": "--pera.order 2 --pera.terms full --pera.coefficient_scale auto",
    "square_auto": "--pera.order 2 --pera.terms square --pera.coefficient_scale auto",
    "order_3_auto": "--pera.order 3 --pera.terms full --pera.coefficient_scale auto",
    "peft_lora": "--peft.peft_type LORA",
    "rslora": "--peft.peft_type LORA --peft.use_rslora true",
    "dora": "--peft.peft_type LORA --peft.use_dora true",
    "pissa": "--peft.peft_type LORA --peft.init_lora_weights pissa",
    "hira": "--peft.peft_type HIRA",
    "loha": "--peft.peft_type LOHA",
    "delora": "--peft.peft_type DELORA",
}
"""Methods by name, as options of `fit` and, under `peft`, of a configuration of PEFT."""
PEFT = "--peft."
"""How options of a configuration of PEFT begin."""


class Method(NamedTuple):
    """What a method is.

    Attributes:
        words: Its options of `fit`.
        peft: Field of a configuration of PEFT -> its value as typed; empty for methods of ours.
    """

    words: tuple[str, ...]
    peft: dict[str, str]


def method_of(text: str) -> Method:
    """The method that options describe.

    Args:
        text: Its options, as typed on a command line.

    Raises:
        ConfigError: An option of PEFT has no value, or quotation marks do not match.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(
            "The options of a method cannot be split into words.",
            got=f"{text!r}: {error}",
            expected="every quotation mark closed",
            fix="close it",
        ) from error
    others: list[str] = []
    peft: dict[str, str] = {}
    while words:
        option, joined, value = words.pop(0).partition("=")
        if not option.startswith(PEFT):
            others.append(f"{option}{joined}{value}")
            continue
        if not joined and (not words or words[0].startswith("--")):
            raise ConfigError(
                "An option of PEFT has no value.",
                got=option,
                expected=f"{option} VALUE",
                fix="write the value behind it",
            )
        peft[option.removeprefix(PEFT)] = value if joined else words.pop(0)
    return Method(tuple(others), peft)


def named_methods(texts: Sequence[str]) -> dict[str, str]:
    """Name -> options of the methods that `--methods` lists.

    Raises:
        ConfigError: A name is unknown, unfit or there twice.
    """
    found = dict(map(_method, texts))
    if len(found) < len(texts):
        raise ConfigError(
            "Methods are told apart by their names.",
            got=" ".join(text.partition("=")[0] for text in texts),
            expected="each name once",
            fix='name them differently, as in "h30=--pera.coefficient_scale 30"',
        )
    return found


def _method(text: str) -> tuple[str, str]:
    name, _, words = text.partition("=")
    if not words and name not in METHODS:
        raise ConfigError(
            "There is no method of that name.",
            got=repr(name),
            expected=f'{", ".join(METHODS)}, or "name=options of fit", or "name=--peft.peft_type TYPE ..."',
            fix=did_you_mean(near(name, METHODS), "use one of them"),
        )
    if not re.fullmatch(r"[\w+-][\w.+-]*", name):
        raise ConfigError(
            "The name of a method becomes the name of a folder.",
            got=repr(name),
            expected="letters, digits, _ + - and, not as the first one, dots",
            fix="name it without blanks and other signs",
        )
    return name, words or METHODS[name]
