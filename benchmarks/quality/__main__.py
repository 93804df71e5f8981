"""Does the polynomial help? Comparisons of methods on real tasks.

    python -m benchmarks.quality run stsb_rank_2 --data data --workers 2
    python -m benchmarks.quality report
    python -m benchmarks.quality check --data data

`run` makes the runs that are missing and writes benchmarks/results/quality/, `report` writes docs/RESULTS.md and its
pictures from there, `check` makes three runs again and compares their numbers with those that are there.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.__main__ import header
from benchmarks.quality.report import RESULTS, write_page
from benchmarks.quality.studies import RUNS, STUDIES
from pera_lightning.analysis.method_comparison import ComparedRun
from pera_lightning.analysis.method_table import read_runs
from pera_lightning.cli.compare_run import run_cell
from pera_lightning.cli.comparison import make_cells, run_comparison

CHECKED = ("stsb_rank_2", "full_auto"), ("sst2_rank_2", "lora"), ("stsb_rank_1", "full")
"""Study and method; of each the chosen learning rate's first seed is made again."""


def run(names: Sequence[str], data: Path, workers: int) -> None:
    """Make the runs of these studies that are missing, and keep their results."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in names:
        run_comparison(STUDIES[name].plan(data, workers))
        shutil.copyfile(RUNS / name / "runs.csv", RESULTS / f"{name}.csv")
        made = {"date": str(datetime.date.today()), "machine": header()}
        (RESULTS / f"{name}.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


def check(data: Path) -> bool:
    """Make three runs again; whether all have the numbers that were kept."""
    same = []
    for name, method in CHECKED:
        kept = next(run for run in read_runs(RESULTS / f"{name}.csv") if run.method == method and not run.diverged)
        with tempfile.TemporaryDirectory() as folder:
            cell = make_cells(STUDIES[name].plan(data, 1, Path(folder)))(method, kept.learning_rate, kept.seed)
            again = run_cell(cell)
        same.append(_numbers(again) == _numbers(kept))
        print(f"{name}, {method}, learning rate {kept.learning_rate:g}, seed {kept.seed}:")
        for metric, value in kept.metrics.items():
            print(f"  {metric}: kept {value:.6f}, again {again.metrics[metric]:.6f}")
    print("all the same" if all(same) else "not the same: other machines, threads and versions round otherwise")
    return all(same)


def _numbers(run: ComparedRun) -> tuple[object, ...]:
    return run.metrics, run.train_loss, run.energy, run.trainable, run.steps


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "report", "check"])
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=f"for run; default: all of {', '.join(STUDIES)}")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with glue/ and commonsense/")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.studies if name not in STUDIES]
    if unknown:
        parser.error(f"no study is named {unknown[0]}; there are {', '.join(STUDIES)}")
    if arguments.command == "run":
        run(arguments.studies or list(STUDIES), arguments.data, arguments.workers)
    elif arguments.command == "report":
        print("\n".join(map(str, write_page(Path("docs")))))
    elif not check(arguments.data):
        sys.exit(1)


if __name__ == "__main__":
    main()
