"""Entry point: hands over to the Trainer's commands or to a tool."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from traceback import walk_tb

from pera_lightning.cli.screen import accept_all_characters
from pera_lightning.errors import ConfigError, PeraError
from pera_lightning.requirements import refuse_compromised_lightning
from pera_lightning.visible_text import visible_text

_OF_TRAINER = ("fit", "validate", "test", "predict")
_HINT = """
  fix:      --trainer.accelerator cpu, after the configs; several processes are tried out on a CPU with
            --trainer.devices 2 too, or with --config configs/strategies/ddp_gloo_cpu.yaml"""


def main() -> None:
    """Run the command line of this process (`sys.argv`)."""
    words = sys.argv[1:]
    # Tokenizers warn about forked DataLoader workers otherwise; examples are tokenised before those start.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        accept_all_characters()
        refuse_compromised_lightning()
        if words and words[0] in TOOLS:
            TOOLS[words[0]](words[1:])
        else:
            _refuse_unknown(words)
            _run_trainer()
    except Exception as error:
        users = _users_error(error)
        if users is None:
            raise
        # The message says all a user needs; a traceback through the Trainer would bury it.
        sys.exit(f"\nerror: {visible_text(str(users))}{_HINT if 'gpu backend' in str(users) else ''}")


def _refuse_unknown(words: list[str]) -> None:
    """Raise ConfigError if the first word is no command: the Trainer's parser would name its own ones alone."""
    if not words or words[0].startswith("-") or words[0] in _OF_TRAINER:
        return
    names = sorted([*TOOLS, *_OF_TRAINER])
    near = get_close_matches(words[0], names, n=3)
    raise ConfigError(
        "There is no such command.",
        got=repr(words[0]),
        expected=f"one of {', '.join([*near, *(name for name in names if name not in near)])}",
        fix=f"did you mean {' or '.join(near)}?" if near else "python -m pera_lightning --help says what they do",
    )


def _users_error(error: BaseException) -> BaseException | None:
    """The error whose message is meant for the user: ours, or Lightning's about options of the Trainer.

    jsonargparse wraps what a class refuses while it is made into ValueErrors of its own.
    """
    lightning = sys.modules.get("lightning.fabric.utilities.exceptions")
    kinds = (PeraError,) if lightning is None else (PeraError, lightning.MisconfigurationException)
    if isinstance(error, kinds):
        return error
    wrapped = [error.__cause__ or error.__context__, *_tried(error)] if type(error) is ValueError else []
    return next((found for link in wrapped if link is not None and (found := _users_error(link))), None)


def _tried(error: BaseException) -> list[BaseException]:
    """What jsonargparse met for each type of a union: up to 4.52 it chains the first of them, whichever that is."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    return frames[-1].f_locals.get("exceptions", []) if frames else []


def _run_trainer() -> None:
    from pera_lightning.cli.fit.trainer import run_trainer

    run_trainer()


def _estimate(words: list[str]) -> None:
    from pera_lightning.cli.estimate.command import estimate

    estimate(words)


def _compare(words: list[str]) -> None:
    from pera_lightning.cli.compare.command import compare

    compare(words)


def _function(name: str, *, positional: bool = False, listing: str | None = None) -> Callable[[list[str]], None]:
    """The command of a function that is called like its module; its docstring is the help.

    Args:
        name: Of both.
        positional: Whether arguments without a default are given without their names.
        listing: An option that takes one value or several, each a word.
    """

    def run(words: list[str]) -> None:
        from jsonargparse import auto_cli

        function = getattr(import_module(f"pera_lightning.cli.{name}"), name)
        given = words if listing is None else _as_list(words, listing)
        auto_cli(function, args=given, as_positional=positional, prog=f"pera_lightning {name}")

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


TOOLS: dict[str, Callable[[list[str]], None]] = {
    "chat": _function("chat"),
    "compare": _compare,
    "consolidate": _function("consolidate"),
    "diff": _function("diff", positional=True),
    "estimate": _estimate,
    "evaluate": _function("evaluate"),
    "export": _function("export"),
    "generate": _function("generate"),
    "inspect": _function("inspect", listing="--prompts"),
    "push": _function("push"),
}
