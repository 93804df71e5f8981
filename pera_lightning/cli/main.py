"""Entry point: hands over to the Trainer's commands or to a tool."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from pera_lightning.errors import PeraError

_HINT = """
  fix:      --trainer.accelerator cpu, after the configs; several processes are tried out on a CPU with
            --trainer.devices 2 too, or with --config configs/strategies/ddp_gloo_cpu.yaml"""


def main() -> None:
    """Run the command line of this process (`sys.argv`)."""
    words = sys.argv[1:]
    # Tokenizers warn about forked DataLoader workers otherwise; examples are tokenised before those start.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        if words and words[0] in TOOLS:
            TOOLS[words[0]](words[1:])
        else:
            _run_trainer()
    except Exception as error:
        if not _is_a_users(error):
            raise
        # The message says all a user needs; a traceback through the Trainer would bury it.
        sys.exit(f"\nerror: {error}{_HINT if 'gpu backend' in str(error) else ''}")


def _is_a_users(error: Exception) -> bool:
    """Whether the message of an error is meant for the user: ours, or Lightning's about options of the Trainer."""
    lightning = sys.modules.get("lightning.fabric.utilities.exceptions")
    return isinstance(error, PeraError) or (
        lightning is not None and isinstance(error, lightning.MisconfigurationException)
    )


def _run_trainer() -> None:
    from pera_lightning.cli.trainer import run_trainer

    run_trainer()


def _generate(words: list[str]) -> None:
    from jsonargparse import auto_cli

    from pera_lightning.cli.generate import generate

    auto_cli(generate, args=words, as_positional=False, prog="pera_lightning generate")


def _consolidate(words: list[str]) -> None:
    from jsonargparse import auto_cli

    from pera_lightning.cli.consolidate import consolidate

    auto_cli(consolidate, args=words, as_positional=False, prog="pera_lightning consolidate")


def _export(words: list[str]) -> None:
    from jsonargparse import auto_cli

    from pera_lightning.cli.export import export

    auto_cli(export, args=words, as_positional=False, prog="pera_lightning export")


def _estimate(words: list[str]) -> None:
    from pera_lightning.cli.estimate import estimate

    estimate(words)


TOOLS: dict[str, Callable[[list[str]], None]] = {
    "consolidate": _consolidate,
    "estimate": _estimate,
    "export": _export,
    "generate": _generate,
}
"""Commands that need no Trainer; each imports what it needs when it runs."""
