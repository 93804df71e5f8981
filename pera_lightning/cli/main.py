"""Entry point: hands over to the Trainer's commands or to a tool."""

from __future__ import annotations

import os
import sys
from traceback import walk_tb

from pera_lightning import __version__
from pera_lightning.cli.commands import command_named, overview, run_lightning_cli
from pera_lightning.cli.library_noise import hush_libraries
from pera_lightning.cli.options.given import CONFIG_OPTIONS
from pera_lightning.cli.screen import accept_all_characters, show
from pera_lightning.errors import PeraError
from pera_lightning.requirements import refuse_compromised_lightning
from pera_lightning.visible_text import visible_text


def main() -> None:
    """Run the command line of this process (`sys.argv`)."""
    words = sys.argv[1:]
    # Tokenizers warn about forked DataLoader workers otherwise; examples are tokenised before those start.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    hush_libraries()
    try:
        accept_all_characters()
        refuse_compromised_lightning()
        _run(words)
    except BrokenPipeError:
        # `| head` has seen enough; what Python flushes at its end must go somewhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        users = _users_error(error)
        if users is None:
            raise
        # The message says all a user needs; a traceback through the Trainer would bury it.
        sys.exit(f"\nerror: {visible_text(str(users))}")


def _run(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help"):
        show(overview())
        sys.exit(0 if words else 2)
    if words[0] == "--version":
        show(f"pera_lightning {__version__}")
    elif words[0].partition("=")[0] in CONFIG_OPTIONS:
        # LightningCLI takes its configs before the command too.
        run_lightning_cli()
    else:
        command_named(words[0]).run(words[1:])


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
