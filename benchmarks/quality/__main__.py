"""Does the polynomial help? Comparisons of methods on real tasks.

    python -m benchmarks.quality run stsb_upper_rank_2 --data data --workers 2
    python -m benchmarks.quality approximate --data data
    python -m benchmarks.quality report
    python -m benchmarks.quality check --data data

`run` makes the runs that are missing and writes benchmarks/results/quality/, `approximate` measures there what products
could do at best, `report` writes docs/RESULTS.md and its pictures from there, `check` makes three runs again and
compares their numbers with those that are there.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.__main__ import header
from benchmarks.quality import approximation
from benchmarks.quality.every_study import STUDIES
from benchmarks.quality.report import RESULTS, write_page
from benchmarks.quality.studies import RUNS
from pera_lightning.analysis.method_comparison import ComparedRun, best_learning_rate
from pera_lightning.analysis.method_table import read_runs
from pera_lightning.cli.compare.comparison_plan import Plan
from pera_lightning.cli.compare.runs import make_cells, run_comparison
from pera_lightning.cli.compare.single_run import keep_result, run_cell

CHECKED = tuple(("adapters_small_model_rank_2", method) for method in ("lora", "dora", "hira"))
"""Study and method; of each the first seed at its best learning rate is made again."""
DIFFERENT = "not the same"


def run(names: Sequence[str], data: Path, workers: int) -> None:
    """Make the runs of these studies that are missing, and keep their results."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in names:
        STUDIES[name].prepare(data)
        plan = STUDIES[name].plan(data, workers)
        _restore(plan, RESULTS / f"{name}.csv")
        run_comparison(plan)
        _keep(RUNS / name / "runs.csv", RESULTS / f"{name}.csv")


def _keep(found: Path, kept: Path) -> None:
    """Copy the results, and note the day and the machine, if there are new ones."""
    if kept.is_file() and kept.read_bytes() == found.read_bytes():
        return
    shutil.copyfile(found, kept)
    about = kept.with_suffix(".json")
    # Some of the runs may be another machine's.
    earlier = json.loads(about.read_text(encoding="utf-8"))["machine"].split("; ") if about.is_file() else []
    made = {"date": str(datetime.date.today()), "machine": "; ".join(dict.fromkeys([*earlier, header()]))}
    about.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


def _restore(plan: Plan, results: Path) -> None:
    """Put the runs that the repository keeps where the comparison looks for them, whichever machine goes on."""
    if not results.is_file():
        return
    cell = make_cells(plan)
    for kept in read_runs(results):
        keep_result(cell(kept.method, kept.learning_rate, kept.seed), kept)


def approximate(data: Path) -> None:
    """Measure how near PERA and LoRA come to weight changes, and keep it."""
    rows = [dataclasses.asdict(found) for found in approximation.measure(data)]
    kept = {"date": str(datetime.date.today()), "machine": header(), "rows": rows}
    approximation.RESULT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def check(data: Path) -> bool:
    """Make three runs again; whether all have the numbers that were kept, to the digits that the page shows."""
    agreements = []
    for name, method in CHECKED:
        study, runs = STUDIES[name], read_runs(RESULTS / f"{name}.csv")
        study.prepare(data)
        rate = best_learning_rate(runs, method, study.seeds[: study.tuning_seeds], study.mode)
        kept = next(run for run in runs if (run.method, run.learning_rate) == (method, rate))
        with tempfile.TemporaryDirectory() as folder:
            cell = make_cells(study.plan(data, 1, Path(folder)))(method, kept.learning_rate, kept.seed)
            again = run_cell(cell)
        agreements.append(agreement(kept, again))
        print(f"{name}, {method}, learning rate {kept.learning_rate:g}, seed {kept.seed}: {agreements[-1]}")
        for metric, value in kept.metrics.items():
            print(f"  {metric}: kept {value:.6f}, again {again.metrics[metric]:.6f}")
    return DIFFERENT not in agreements


def agreement(kept: ComparedRun, again: ComparedRun) -> str:
    """How far two results of one run agree; other machines, threads and versions round otherwise."""
    if _numbers(kept) == _numbers(again):
        return "the same, bit by bit"
    same_work = (kept.trainable, kept.steps) == (again.trainable, again.steps)
    same_metrics = kept.metrics.keys() == again.metrics.keys()
    if (
        same_work
        and same_metrics
        and all(abs(kept.metrics[name] - again.metrics[name]) <= 1e-4 for name in kept.metrics)
    ):
        return "the same to 1e-4: it was made on another machine, or with other threads or versions"
    return DIFFERENT


def _numbers(run: ComparedRun) -> tuple[object, ...]:
    return run.metrics, run.train_loss, run.energy, run.trainable, run.steps


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "approximate", "report", "check"])
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=f"for run; default: all of {', '.join(STUDIES)}")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with glue/, commonsense/, ...")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.studies if name not in STUDIES]
    if unknown:
        parser.error(f"no study is named {unknown[0]}; there are {', '.join(STUDIES)}")
    if arguments.command != "report" and not arguments.data.is_dir():
        parser.error(f"--data is no folder: {arguments.data}; name the one with glue/, commonsense/, wikitext2/, text/")
    if arguments.command == "run":
        run(arguments.studies or list(STUDIES), arguments.data, arguments.workers)
    elif arguments.command == "approximate":
        approximate(arguments.data)
    elif arguments.command == "report":
        print("\n".join(map(str, write_page(Path("docs")))))
    elif not check(arguments.data):
        sys.exit(1)


if __name__ == "__main__":
    main()
