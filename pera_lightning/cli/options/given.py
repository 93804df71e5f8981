"""Which options were given, and where: on the command line, or in which line of a YAML file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import yaml

from pera_lightning.did_you_mean import did_you_mean, near_paths
from pera_lightning.errors import ConfigError

CONFIG_OPTIONS = ("--config", "-c")
_OF_CLASS = ("class_path", "<<", "init_args", "dict_kwargs")
_RANKS = {"class_path": 0, "<<": 1}


@dataclass(frozen=True)
class Given:
    """An option as somebody gave it.

    Args:
        key: Its name with dots between the parts, without `init_args`: "model.learning_rate".
        value: What it was set to, as text, a list in YAML; None where it was given none, or one of several parts.
        place: Where it stands, for messages.
        is_word: Whether on the command line.
        is_beside_class: Whether beside a class_path, which stands in YAML with `init_args` alone.
    """

    key: str
    value: str | None
    place: str
    is_word: bool
    is_beside_class: bool = False


def given_options(words: Sequence[str]) -> list[Given]:
    """All options of a command line and of the configs it names, in the order in which they count.

    Raises:
        ConfigError: A config is missing or is no YAML.
    """
    found: list[Given] = []
    for option, value in option_words(words):
        if option in CONFIG_OPTIONS:
            found += _of_config(value)
        elif option.startswith("--"):
            found.append(Given(option_name(option), value, option, is_word=True))
    return found


def option_name(option: str) -> str:
    """The name of an option as it is typed: "model.learning_rate" of "--model.init_args.learning_rate"."""
    return _key(option.removeprefix("--").rstrip("+"))


def option_words(words: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Options with the word behind them, if that is no option itself."""
    for word, after in zip_longest(words, words[1:]):
        if word.startswith("--") or word in CONFIG_OPTIONS:
            option, is_joined, value = word.partition("=")
            is_value = after is not None and not _is_option(after)
            yield option, value if is_joined else (after if is_value else None)


def unnamed_words(words: Sequence[str]) -> list[str]:
    """Words that are neither options nor stand behind one."""
    return [
        word
        for before, word in zip(("", *words), words, strict=False)
        if not word.startswith("-") and not (_is_option(before) and "=" not in before)
    ]


def _is_option(word: str) -> bool:
    return word.startswith("--") or word in CONFIG_OPTIONS


def _key(name: str) -> str:
    # "<<" merges a mapping into the one that it stands in.
    return ".".join(part for part in name.split(".") if part not in ("init_args", "<<"))


def has_unread_config(words: Sequence[str]) -> bool:
    """Whether a config is named that `given_options` leaves to the parser."""
    return any(_is_unread(value) for option, value in option_words(words) if option in CONFIG_OPTIONS)


def _is_unread(value: str | None) -> bool:
    """A URL, or options themselves, in YAML or JSON."""
    return value is None or "://" in value or "\n" in value or value.lstrip().startswith("{")


def _of_config(value: str | None) -> list[Given]:
    if value is None or _is_unread(value):
        return []
    path = Path(value)
    if not path.is_file():
        raise _no_config_file(path)
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = 0 if error.problem_mark is None else error.problem_mark.line + 1
        raise ConfigError(
            "The config is no YAML.",
            got=f"{path}, line {line}: {error.problem}",
            expected="options as `key: value`, indented by spaces; a list as [a, b]",
            fix="correct the line, or the one above it",
        ) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            "The config cannot be read.",
            got=f"{path}: {error}",
            expected="a YAML file in UTF-8",
            fix="correct the file",
        ) from error
    return [] if root is None else list(_of_node(root, "", str(path), depth=0))


def _no_config_file(path: Path) -> ConfigError:
    # As a shell writes `<(command)`. The processes of a fit each read the file, and more than once.
    is_pipe = path.exists() and not path.is_dir()
    kind = "a folder" if path.is_dir() else "a pipe, to be read only once" if is_pipe else "no file"
    return ConfigError(
        "The config cannot be read.",
        got=f"{path} (from {Path.cwd()}), which is {kind}",
        expected="a YAML file with options",
        fix='write a file, or give the YAML itself: --config "$(COMMAND)"'
        if is_pipe
        else did_you_mean(near_paths(path), "correct the path"),
    )


def _of_node(node: yaml.Node, prefix: str, path: str, depth: int) -> Iterator[Given]:
    """The keys of a mapping and of the mappings in it; options of options have no names that we could know."""
    if not isinstance(node, yaml.MappingNode) or depth > 3:
        return
    # A class is named for all that stands beside it.
    pairs = sorted(node.value, key=lambda pair: _RANKS.get(str(pair[0].value), len(_RANKS)))
    has_class = any(name.value == "class_path" for name, _ in pairs)
    for name, value in pairs:
        key = _key(f"{prefix}{name.value}")
        if key and key != prefix.rstrip("."):
            is_beside = has_class and name.value not in _OF_CLASS
            line = f"{path}, line {name.start_mark.line + 1}"
            yield Given(key, _text(value), line, is_word=False, is_beside_class=is_beside)
        for inner, part in _parts(value, key, is_merged=name.value == "<<"):
            yield from _of_node(part, inner, path, depth + 1)


def _parts(node: yaml.Node, key: str, *, is_merged: bool) -> Iterator[tuple[str, yaml.Node]]:
    """A mapping, or the mappings of a list, each with what stands before its keys."""
    if not isinstance(node, yaml.SequenceNode):
        yield f"{key}." if key else "", node
        return
    for number, part in enumerate(node.value):
        yield from _parts(part, key if is_merged else f"{key}.{number}", is_merged=is_merged)


def _text(node: yaml.Node) -> str | None:
    if isinstance(node, yaml.SequenceNode) and all(isinstance(part, yaml.ScalarNode) for part in node.value):
        return json.dumps([part.value for part in node.value])
    return node.value if isinstance(node, yaml.ScalarNode) else None
