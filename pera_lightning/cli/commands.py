"""What the command line can be asked for: one line each, told without importing what they need."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from pera_lightning.cli.options.checked import check_names, check_trainer_options
from pera_lightning.cli.options.first_rows import check_first_rows
from pera_lightning.cli.options.given import given_options, unnamed_words
from pera_lightning.cli.options.help_pages import tool_help, trainer_help
from pera_lightning.cli.options.places import check_places
from pera_lightning.cli.options.signatures import Parameter, parameters
from pera_lightning.cli.options.stray_words import check_stray_words
from pera_lightning.cli.options.tool_places import check_tool_places
from pera_lightning.cli.options.values import check_values
from pera_lightning.cli.quick_imports import quick_imports
from pera_lightning.cli.screen import show
from pera_lightning.did_you_mean import did_you_mean, near
from pera_lightning.errors import ConfigError

USAGE = "usage: pera_lightning COMMAND [options]"
_CLOSING = """\
`pera_lightning COMMAND --help` says what a command takes.
Own models and data: any LightningModule and LightningDataModule, by class_path."""


@dataclass(frozen=True)
class Command:
    """A command.

    Args:
        summary: What it does, in less than a line.
        run: Runs it with the words behind its name.
    """

    summary: str
    run: Callable[[list[str]], None]


def _module(path: str, function: str) -> Callable[[list[str]], None]:
    """A command that parses its words itself."""

    def run(words: list[str]) -> None:
        getattr(import_module(path), function)(words)

    return run


def _function(name: str, *, positional: bool = False, listing: str | None = None) -> Callable[[list[str]], None]:
    """The command of a function that is called like its module; its docstring is the help.

    Args:
        name: Of both.
        positional: Whether arguments without a default are given without their names.
        listing: An option that takes one value or several, each a word.
    """

    def run(words: list[str]) -> None:
        known = parameters(f"pera_lightning.cli.{name}", name)
        if (page := tool_help(f"pera_lightning.cli.{name}", name, words, positional)) is not None:
            show(page)
            return
        options = given_options(words)
        check_names(options, known | {"config": Parameter()})
        words = words if listing is None else _as_list(words, listing)
        if not positional:
            check_stray_words(words, known)
        check_values(options, known)
        check_tool_places(options, unnamed_words(words) if positional else ())
        from jsonargparse import auto_cli

        from pera_lightning.cli.options.parser import OptionParser, with_flags

        function = getattr(import_module(f"pera_lightning.cli.{name}"), name)
        given = with_flags(words, known)
        prog = f"pera_lightning {name}"
        auto_cli(function, args=given, as_positional=positional, prog=prog, parser_class=OptionParser)

    return run


def _as_list(words: list[str], option: str) -> list[str]:
    """The words with the values of an option as one list in JSON, as jsonargparse takes it; a list stays as it is."""
    words = [part for word in words for part in (word.split("=", 1) if word.startswith(f"{option}=") else [word])]
    if option not in words:
        return words
    begin = words.index(option) + 1
    end = next((place for place in range(begin, len(words)) if words[place].startswith("--")), len(words))
    values = words[begin:end]
    is_list = not values or (len(values) == 1 and values[0].lstrip().startswith("["))
    return words if is_list else [*words[:begin], json.dumps(values), *words[end:]]


def _trainer(command: str) -> Callable[[list[str]], None]:
    def run(words: list[str]) -> None:
        if (page := trainer_help(command, words)) is not None:
            show(page)
            return
        check_trainer_options(command, words)
        check_places(command, words)
        check_first_rows(command, words)
        run_lightning_cli()

    return run


def run_lightning_cli() -> None:
    """Run `fit`, `validate`, `test` or `predict`: LightningCLI reads the words of the process, as its launchers do."""
    with quick_imports():
        from pera_lightning.cli.fit.trainer import PeraCLI, make_cli

    make_cli(PeraCLI)


TRAINING = {
    "fit": Command("train an adapter, from a YAML file or from options", _trainer("fit")),
    "validate": Command("measure on the validation data", _trainer("validate")),
    "test": Command("measure on the test data, beside the base model where asked to", _trainer("test")),
    "predict": Command("write predictions to a file", _trainer("predict")),
}
TOOLS = {
    "generate": Command("print the answer of an adapted model to a prompt", _function("generate")),
    "chat": Command("talk to an adapted model", _function("chat")),
    "evaluate": Command("put commonsense or lm-eval tasks to a model, print accuracies", _function("evaluate")),
    "compare": Command(
        "train methods side by side, each at its own best learning rate",
        _module("pera_lightning.cli.compare.command", "compare"),
    ),
    "inspect": Command("tables and pictures of an adapter's layers", _function("inspect", listing="--prompts")),
    "diff": Command("compare two adapters layer by layer", _function("diff", positional=True)),
    "estimate": Command(
        "whether a fit will fit on a card, before anything is loaded",
        _module("pera_lightning.cli.estimate.command", "estimate"),
    ),
    "consolidate": Command("make an adapter folder of a checkpoint", _function("consolidate")),
    "export": Command("write an adapter as a plain LoRA, merged, or GGUF, and check it", _function("export")),
    "push": Command("upload an adapter or an export to the Hugging Face hub", _function("push")),
}
COMMANDS = TRAINING | TOOLS
_ELSEWHERE = {"train": "fit", "finetune": "fit", "eval": "evaluate", "merge": "export", "upload": "push"}
"""What other tools call these."""


def overview() -> str:
    """All commands, a line each."""
    width = max(map(len, COMMANDS))
    parts = []
    for title, commands in (("with a Trainer", TRAINING), ("tools", TOOLS)):
        lines = [f"  {name:{width}}  {command.summary}" for name, command in commands.items()]
        parts.append("\n".join([f"{title}:", *lines]))
    return "\n\n".join([USAGE, *parts, _CLOSING])


def command_named(name: str) -> Command:
    """The command of this name.

    Raises:
        ConfigError: There is none.
    """
    if name in COMMANDS:
        return COMMANDS[name]
    meant = list(dict.fromkeys(_ELSEWHERE.get(found, found) for found in near(name, [*COMMANDS, *_ELSEWHERE])))
    others = sorted(set(COMMANDS) - set(meant))
    raise ConfigError(
        "There is no such command.",
        got=repr(name),
        expected=f"one of {', '.join([*meant, *others])}",
        fix=did_you_mean(meant, "pera_lightning --help says what they do"),
    )
