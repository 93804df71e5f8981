"""The options of a fit as `fit` parses them; nothing is made of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from pera_lightning.cli.fit.trainer import PeraCLI, make_cli
from pera_lightning.errors import ConfigError
from pera_lightning.storage.remote import local_path


class _ParsedFit(PeraCLI):
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)

    def _set_seed(self) -> None: ...

    def before_instantiate_classes(self) -> None: ...

    def instantiate_classes(self) -> None: ...

    def _run_subcommand(self, subcommand: str) -> None: ...


def parse_fit(command: str, words: Sequence[str]) -> Namespace:
    """The options of the fit that `words` describe.

    Args:
        command: The tool that asks, for its messages.
        words: `--config` and overrides as `fit` takes them.

    Raises:
        ConfigError: No config is named, or one is no file.
    """
    _check_configs(command, words)
    parsed = make_cli(_ParsedFit, ["fit", *words], prog=f"pera_lightning {command}")
    return parsed.config.fit


def _check_configs(command: str, words: Sequence[str]) -> None:
    following = [after for word, after in itertools.pairwise(words) if word in ("--config", "-c")]
    given = [*following, *(word[9:] for word in words if word.startswith("--config="))]
    paths = [local_path(path, "--config") for path in given]
    if not paths:
        raise ConfigError(
            f"{command} needs to know which fit.",
            got="no --config",
            expected="a YAML file as `fit` takes it",
            fix=f"python -m pera_lightning {command} --config configs/quickstart.yaml",
        )
    for path in paths:
        if not path.is_file():
            raise ConfigError(
                "The config cannot be read.",
                got=f"{path} (from {Path.cwd()}), which is no file",
                expected="a YAML file as `fit` takes it",
                fix="correct the path",
            )
