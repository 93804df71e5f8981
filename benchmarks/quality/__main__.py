"""`python -m benchmarks.quality run|report|check`; see docs/RESULTS.md for what it found."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from benchmarks.quality.studies import RUNS, STUDIES
from pera_lightning.cli.compare import run_comparison

RESULTS = Path("benchmarks/results/quality")


def run(names: list[str], data: Path, workers: int) -> None:
    """Make the runs of these studies that are missing, and keep their results."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in names:
        run_comparison(STUDIES[name].plan(data, workers))
        shutil.copyfile(RUNS / name / "runs.csv", RESULTS / f"{name}.csv")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.quality", description=__doc__)
    parser.add_argument("command", choices=["run"])
    parser.add_argument("studies", nargs="*", default=list(STUDIES), help="default: all")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with glue/ and commonsense/")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    arguments = parser.parse_args()
    run(arguments.studies, arguments.data, arguments.workers)


if __name__ == "__main__":
    main()
