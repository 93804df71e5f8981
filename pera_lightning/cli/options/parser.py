"""Parsers whose errors are ours: what was given, what would be right, what to do; no page of usage."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence, Set
from inspect import signature
from itertools import zip_longest
from typing import NoReturn

from jsonargparse import ArgumentParser
from typing_extensions import override

from pera_lightning.cli.options.checked import missing_options
from pera_lightning.cli.options.class_paths import missing_class
from pera_lightning.cli.options.given import Given, given_options
from pera_lightning.cli.options.signatures import Parameter
from pera_lightning.did_you_mean import did_you_mean, near
from pera_lightning.errors import ConfigError

_KEY = re.compile(r'Parser key "([^"]+)"')
_VALUE = re.compile(r"(?:Got value|Given value): (.+)")
_NESTED = re.compile(r"NestedArg\(key='([^']*)', val=(.*)\)$")
_UNKNOWN = re.compile(r"class_path '([^']+)':\s+Option '([^']+)' is not accepted")
_BASES = ("lightning.LightningModule", "lightning.LightningDataModule", "lightning.Callback")
"""What jsonargparse takes options for where no class is named."""
_EXPECTED = re.compile(r"Expected a(?:n)? (.+?)(?:\. Got value.*)?$", re.MULTILINE)
_UNIMPORTABLE = re.compile(r"(No module named '[^']+'|module '[^']+' has no attribute '[^']+')")
_TYPES = {
    "<class 'int'>": "a whole number",
    "<class 'float'>": "a number",
    "<class 'str'>": "a text",
    "<class 'bool'>": "true or false",
    "<class 'NoneType'>": "null",
    "<class 'list'>": "a list: [a, b]",
}


class OptionParser(ArgumentParser):
    """A parser of jsonargparse that raises `ConfigError` where it would print its usage and leave the process."""

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        # Those within are asked what a value could be; what they answer is not the last word.
        if not self.exit_on_error:
            super().error(message, ex)
        of_command = getattr(ex, "subcommand_parser", None) or self
        # "pera_lightning compare [options] fit": what is wrong belongs to the fit.
        tool, _, command = of_command.prog.partition(" [options] ")
        asked = f"`{f'pera_lightning {command}' if command else tool} --help` says what it takes"
        raise as_config_error(message, sys.argv[1:], set(of_command._option_string_actions), asked) from ex


class ToolParser(argparse.ArgumentParser):
    """argparse's, of tools that take several values behind an option; with the same errors."""

    @override
    def error(self, message: str) -> NoReturn:
        raise as_config_error(message, sys.argv[1:], set(), f"`{self.prog} --help` says what it takes")


def as_config_error(message: str, words: Sequence[str], options: Set[str], asked: str) -> ConfigError:
    """What a parser objects to, in the form of all errors.

    Args:
        message: Its message.
        words: The command line.
        options: What the parser takes, beside words without a name.
        asked: How to get help.
    """
    if missing := message.partition("arguments are required: ")[2]:
        return missing_options([_as_typed(name.strip(), options) for name in missing.split(",")], asked)
    if found := re.search(r"argument (--[^:\s]+):? expected one argument", message):
        fix = _of_group(found[1][2:], asked)
        return ConfigError("An option has no value.", got=found[1], expected=f"{found[1]} VALUE", fix=fix)
    if found := re.match(r"argument (-\S+): (.*)", message):
        return ConfigError(f"{found[1]} cannot have this value.", got=found[2], expected="another one", fix=asked)
    if unknown := message.partition("unrecognized arguments: ")[2]:
        return ConfigError(
            "There is no such option.", got=unknown, expected="options, and a value behind each", fix=asked
        )
    keys = [key for key in _KEY.findall(message) if key]
    if not keys:
        text = " ".join(message.split())
        return ConfigError("The options cannot be read.", got=text, expected="valid ones", fix=asked)
    return _wrong_value(keys, message, given_options(words), _of_group(keys[0], asked))


def _of_group(key: str, asked: str) -> str:
    """The way to the help of the options that a key stands among."""
    group = key.partition(".")[0]
    return asked.replace("--help", f"--{group}.help") if group in ("trainer", "pera", "model", "data") else asked


def _as_typed(name: str, options: Set[str]) -> str:
    if name.startswith("-"):
        return name
    # Of a command, "fit.model".
    option = f"--{name.rpartition('.')[2]}"
    return option if option in options or "." in name else name.upper()


def _wrong_value(keys: list[str], message: str, given: Sequence[Given], asked: str) -> ConfigError:
    key = ".".join(keys)
    places = [one.place for one in given if one.key in (key, f"{key}.class_path")]
    value = (_VALUE.findall(message) or ["?"])[0]
    if nested := _NESTED.match(value):
        key, value = key if len(keys) > 1 else f"{key}.{nested[1]}", nested[2]
    if unknown := _UNKNOWN.search(message):
        return _unknown_option(keys[0], unknown[1], unknown[2], given, asked)
    value = _shortened(value)
    what = f"{key} = {value}" + (f" ({places[-1]})" if places and not places[-1].startswith("--") else "")
    if reason := _UNIMPORTABLE.search(message):
        return ConfigError(
            f"The class for {key} cannot be imported.",
            got=f"{what}: {reason[1]}",
            expected="package.module.Class of something that is installed, or in a folder on PYTHONPATH",
            fix="correct the name; files in the working directory are found by `python -m pera_lightning`",
        )
    wanted = list(dict.fromkeys(_shown_type(text) for text in _EXPECTED.findall(message) if text[:4] != "path"))
    if len(keys) > 1:
        # What follows is about the class that the option belongs to.
        wanted = wanted[:1]
    classes = _known_classes() if "a class" in wanted else []
    is_list = "," in value and "{" not in value and any("list" in text for text in wanted)
    return ConfigError(
        f"{key} cannot have this value.",
        got=what,
        expected=" or ".join(wanted) or "another one",
        fix=f"a list is written [{value}]" if is_list else did_you_mean(near(value, classes), asked),
    )


def _unknown_option(key: str, class_path: str, option: str, given: Sequence[Given], asked: str) -> ConfigError:
    places = [one.place for one in given if one.key.startswith(f"{key}.") and one.key.endswith(f".{option}")]
    place = places[-1] if places else f"--{key}"
    if class_path in _BASES:
        return missing_class(key, option, place)
    module, _, name = class_path.rpartition(".")
    chosen = getattr(sys.modules.get(module), name, None)
    return ConfigError(
        "There is no such option.",
        got=f"{key}.{option} ({place})",
        expected=f"an option of {class_path}",
        fix=did_you_mean(near(option, signature(chosen).parameters) if callable(chosen) else (), asked),
    )


def _shortened(text: str) -> str:
    return text if len(text) <= 160 else f"{text[:157]}..."


def _shown_type(text: str) -> str:
    if text.startswith("dot import path"):
        return "a class"
    literal = re.match(r"typing\.Literal\[(.*)\]", text)
    if literal:
        return f"one of {literal[1].replace(chr(39), '')}"
    if "Mapping" in text or "dict" in text:
        return "a mapping: {name: value}"
    return "a list: [a, b]" if re.search(r"Sequence|Iterable|list\[", text) else _TYPES.get(text, text)


def _known_classes() -> list[str]:
    """Short names that a Trainer's options take."""
    modules = [
        sys.modules.get(f"lightning.pytorch.{name}") for name in ("callbacks", "loggers", "strategies", "profilers")
    ]
    return [name for module in modules for name in getattr(module, "__all__", ())]


def with_flags(words: Sequence[str], known: Mapping[str, Parameter]) -> list[str]:
    """The words with "true" behind options that are yes or no and stand alone.

    Args:
        words: Of the command line.
        known: The options there are.
    """
    flags = {f"--{name}" for name, parameter in known.items() if parameter.is_flag}
    found: list[str] = []
    for word, after in zip_longest(words, words[1:], fillvalue="--"):
        found.append(word)
        if word.replace(".init_args", "") in flags and after.startswith("-"):
            found.append("true")
    return found
