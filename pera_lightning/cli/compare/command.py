"""`compare`: methods side by side on a user's own fit, each at its own best learning rate."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pera_lightning.cli.compare.comparison_methods import METHODS, named_methods
from pera_lightning.cli.options.checked import check_fit_of
from pera_lightning.cli.options.parser import ToolParser
from pera_lightning.cli.options.places import check_places
from pera_lightning.cli.screen import show, show_table
from pera_lightning.errors import ConfigError
from pera_lightning.storage.remote import local_path

if TYPE_CHECKING:
    from pera_lightning.analysis.method_comparison import MethodSummary


def compare(words: Sequence[str]) -> None:
    """Run a comparison and print and draw what it found.

    Args:
        words: Options of `compare`, and `--config` and overrides as `fit` takes them.

    Raises:
        ConfigError: An option, the config or an override is wrong, or `--out` holds another comparison or other files.
    """
    arguments, rest = _parser().parse_known_args(words)
    check_fit_of("compare", rest)
    check_places("fit", rest, resumes=False)
    from pera_lightning.analysis.method_comparison import is_identical_to_lora, summarise, verdict
    from pera_lightning.analysis.method_table import as_table
    from pera_lightning.cli.compare.comparison_plan import Plan
    from pera_lightning.cli.compare.interrupts import told_interrupts
    from pera_lightning.cli.compare.runs import run_comparison

    selection, report = _metrics(arguments.metric)
    plan = Plan(
        words=tuple(rest),
        methods=named_methods(arguments.methods),
        learning_rates=tuple(arguments.learning_rates),
        seeds=tuple(arguments.seeds),
        tuning_seeds=len(arguments.seeds) if arguments.tuning_seeds is None else arguments.tuning_seeds,
        selection=selection,
        report=report,
        mode=arguments.mode or _mode(selection),
        out=local_path(arguments.out, "--out"),
        learning_rate_option=arguments.learning_rate_option,
        workers=arguments.workers,
        extensions=arguments.extend,
        overwrite=arguments.overwrite == "true",
    )
    with told_interrupts():
        runs = run_comparison(plan)
    summaries = summarise(runs, plan.tuning, plan.mode)
    show_table(as_table(summaries, plan.report))
    show(verdict(summaries, plan.mode))
    show(*map(_identical, filter(is_identical_to_lora, summaries)))
    show(plan.out / "runs.csv", plan.out / "comparison.png")


def _identical(summary: MethodSummary) -> str:
    """What to do about a method whose polynomial terms took no part."""
    line = f"{summary.method}: energy {summary.energy:.1g}: identical to LoRA"
    return line if summary.method.endswith("_auto") else f"{line}; try full_auto"


def _parser() -> argparse.ArgumentParser:
    parser = ToolParser(
        prog="pera_lightning compare",
        usage="%(prog)s --config CONFIG [--config CONFIG ...] [options] [any option of fit]",
        description="Train a fit with several methods, learning rates and seeds, and compare the methods, each at the "
        "learning rate that is best on the validation data, on the test data. Methods share the order of the data and "
        "the seeds. Can be interrupted: the same command goes on with the runs that are missing.",
        epilog="Methods: " + "; ".join(f"{name}: {words}" for name, words in METHODS.items()),
        allow_abbrev=False,
    )
    _add_runs(parser)
    _add_metric(parser)
    _add_way(parser)
    return parser


def _add_runs(parser: argparse.ArgumentParser) -> None:
    """Options of which runs are made."""
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["lora", "square", "cross", "full"],
        metavar="METHOD",
        help='names, or "name=options of fit", e.g. "h100=--pera.coefficient_scale 100"; the first is the reference '
        "(default: lora square cross full)",
    )
    parser.add_argument("--learning_rates", nargs="+", type=float, required=True, metavar="RATE")
    parser.add_argument(
        "--extend",
        type=int,
        default=0,
        metavar="N",
        help="where the best learning rate of a method is at an end of the grid, it tries up to N further ones beyond "
        "(default: 0)",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED", help="default: 0 1 2")
    parser.add_argument(
        "--tuning_seeds",
        type=int,
        metavar="N",
        help="only the first N seeds try every learning rate, the others the best one (default: all)",
    )


def _add_metric(parser: argparse.ArgumentParser) -> None:
    """Options of what the methods are compared by."""
    parser.add_argument(
        "--metric",
        nargs="+",
        default=["loss"],
        help="logged as val_METRIC and test_METRIC, or the two names it is logged under (default: loss)",
    )
    parser.add_argument(
        "--mode", choices=["min", "max"], help="which is better of the metric in validation (default: by its name)"
    )


def _add_way(parser: argparse.ArgumentParser) -> None:
    """Options of how the runs are made, and where they go."""
    parser.add_argument("--out", default="runs/compare", help="folder of the comparison (default: runs/compare)")
    parser.add_argument(
        "--learning_rate_option",
        default="model.init_args.learning_rate",
        metavar="OPTION",
        help="the option of fit that is the learning rate (default: model.init_args.learning_rate)",
    )
    parser.add_argument(
        "--overwrite",
        choices=["true", "false"],
        default="false",
        help="write into a folder with other files too, and replace those of the same names (default: false)",
    )
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="runs at a time (default: 1)")


def _metrics(names: Sequence[str]) -> tuple[str, str]:
    """The names under which the metric is logged in validation and in test."""
    if len(names) > 2:
        raise ConfigError(
            "One metric is compared by.",
            got=" ".join(names),
            expected="its name, or its two names in validation and in test",
            fix="--metric accuracy, or --metric val/acc test/acc",
        )
    return (names[0], names[1]) if len(names) == 2 else (f"val_{names[0]}", f"test_{names[0]}")


LOWER_IS_BETTER = {"loss", "perplexity", "ppl", "nll", "error", "mse", "rmse", "mae", "wer", "cer"}
HIGHER_IS_BETTER = {
    *("accuracy", "acc", "f1", "matthews", "mcc", "pearson", "spearman", "precision", "recall", "auc", "auroc"),
    *("match", "bleu", "rouge", "r2"),
}
"""Words in the names of metrics."""


def _mode(name: str) -> Literal["min", "max"]:
    """Which is better of a metric of this name."""
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    lower, higher = bool(words & LOWER_IS_BETTER), bool(words & HIGHER_IS_BETTER)
    if lower == higher:
        raise ConfigError(
            "The name of the metric does not say whether more of it is better.",
            got=name,
            expected=f"a name with one of the words {', '.join(sorted(LOWER_IS_BETTER | HIGHER_IS_BETTER))}, or a mode",
            fix="--mode min if less is better, --mode max if more is",
        )
    return "min" if lower else "max"
