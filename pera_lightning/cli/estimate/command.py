"""`estimate`: the GPU memory of a fit, before anything is loaded."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pera_lightning.cli.options.checked import check_fit_of
from pera_lightning.cli.options.parser import ToolParser
from pera_lightning.cli.options.places import check_places
from pera_lightning.cli.screen import show, show_table

CARDS = (8, 12, 16, 24)


def estimate(words: Sequence[str]) -> None:
    """Print whether a fit fits on some cards, what it needs part by part, and the largest batch and length for them.

    Args:
        words: `--config` and overrides as `fit` takes them, and `--cards`.

    Raises:
        ConfigError: The config cannot be read, or holds no fit whose memory can be counted.
    """
    arguments, rest = _parser().parse_known_args(words)
    check_fit_of("estimate", rest)
    check_places("fit", rest, resumes=False)
    import rich

    from pera_lightning.cli.estimate.fit_on_meta import FitOnMeta
    from pera_lightning.cli.estimate.fit_options import FitOptions
    from pera_lightning.cli.estimate.parsed_fit import parse_fit
    from pera_lightning.cli.estimate.what_fits import answers, cards_table, growths_of, parts_table

    fit = FitOnMeta(FitOptions.of(parse_fit("estimate", rest)))
    console = rich.get_console()
    with console.status("Counting; about a minute ..."):
        growths = {checkpointing: growths_of(fit, checkpointing) for checkpointing in (True, False)}
        parts = parts_table(fit)
    show(*answers(fit, arguments.cards))
    show_table(parts)
    show_table(cards_table(fit, growths, arguments.cards))


def _parser() -> argparse.ArgumentParser:
    parser = ToolParser(
        prog="pera_lightning estimate",
        usage="%(prog)s --config CONFIG [--config CONFIG ...] [--cards GB ...] [any option of fit]",
        description="GPU memory of a fit, and the largest batch and length for some cards, without loading weights "
        "or data.",
        epilog="Overrides are those of `fit`, e.g. --model.init_args.quantization int8 --data.init_args.batch_size 8.",
        allow_abbrev=False,
    )
    parser.add_argument("--cards", nargs="+", type=float, default=list(CARDS), metavar="GB", help="memory of cards")
    return parser
