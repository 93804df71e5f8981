"""The options of a fit as `fit` parses them; nothing is made of them."""

from __future__ import annotations

from collections.abc import Sequence

from jsonargparse import Namespace

from pera_lightning.cli.fit.trainer import PeraCLI, make_cli


class _ParsedFit(PeraCLI):
    def _set_seed(self) -> None: ...

    def before_instantiate_classes(self) -> None: ...

    def instantiate_classes(self) -> None: ...

    def _run_subcommand(self, subcommand: str) -> None: ...


def parse_fit(command: str, words: Sequence[str]) -> Namespace:
    """The options of the fit that `words` describe.

    Args:
        command: The tool that asks, for its messages.
        words: `--config` and overrides as `fit` takes them.
    """
    parsed = make_cli(_ParsedFit, ["fit", *words], prog=f"pera_lightning {command}")
    return parsed.config.fit
