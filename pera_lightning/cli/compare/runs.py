"""A comparison: which runs it has, making those that are missing, and what it writes."""

from __future__ import annotations

import math
import multiprocessing
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pera_lightning.cli.compare.settings import SETTINGS, check_fit, keep_settings
from pera_lightning.errors import ConfigError
from pera_lightning.storage.folder_kind import FolderKind, check_ours
from pera_lightning.storage.out_folder import check_out_folder
from pera_lightning.storage.whole_folder import whole_folder
from pera_lightning.visible_text import visible

if TYPE_CHECKING:
    from pera_lightning.analysis.method_comparison import ComparedRun
    from pera_lightning.cli.compare.single_run import Cell

COMPARISON = FolderKind(
    "a comparison",
    marker=SETTINGS,
    recognise=lambda values: {"selection", "report", "methods"} <= values.keys(),
    files=("runs.csv", "comparison.png"),
    # One that was interrupted before its settings were written.
    beside=(".lock",),
)


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes:
        words: `--config` and overrides, as `fit` takes them.
        methods: Name -> further overrides. The first one is the reference.
        learning_rates: Learning rates that every method tries.
        seeds: Seeds of the runs at the best learning rate.
        tuning_seeds: How many of them, from the first, try every learning rate; the best is chosen by these.
        selection: Name of the metric to select by, logged in validation.
        report: Name of the metric to report, logged in test.
        mode: Whether less or more of them is better.
        out: Folder of the comparison. Runs that it holds already are not made again.
        learning_rate_option: The option of `fit` that is the learning rate.
        workers: Runs made at a time: one in this process, or several in processes of their own.
        overwrite: Whether `out` may be a folder with other files; those of the same names are then replaced.
    """

    words: tuple[str, ...]
    methods: dict[str, str]
    learning_rates: tuple[float, ...]
    seeds: tuple[int, ...]
    tuning_seeds: int
    selection: str
    report: str
    mode: Literal["min", "max"]
    out: Path
    learning_rate_option: str = "model.init_args.learning_rate"
    workers: int = 1
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name, values in (("learning_rates", self.learning_rates), ("seeds", self.seeds)):
            if not values or len(set(values)) < len(values):
                raise ConfigError(
                    f"{name} are tried one after the other.",
                    got=str(list(values)),
                    expected="one or more, each once",
                    fix="leave out what is there twice",
                )
        if not all(0 < rate < math.inf for rate in self.learning_rates):
            raise ConfigError(
                "A learning rate says how far a step goes.",
                got=str(list(self.learning_rates)),
                expected="numbers above 0",
                fix="leave out the others",
            )
        if not all(0 <= seed < 2**32 for seed in self.seeds):
            raise ConfigError(
                "Random numbers start from a seed.",
                got=str(list(self.seeds)),
                expected="whole numbers from 0 to 4294967295",
                fix="leave out the others",
            )
        if self.workers < 1:
            raise ConfigError(
                "workers says how many runs are made at a time.",
                got=self.workers,
                expected="a number of 1 or more",
                fix="leave it out: then it is 1",
            )
        if not 1 <= self.tuning_seeds <= len(self.seeds):
            raise ConfigError(
                "tuning_seeds says how many of the seeds try every learning rate.",
                got=f"{self.tuning_seeds} of {len(self.seeds)} seeds",
                expected=f"a number from 1 to {len(self.seeds)}",
                fix="leave it out: then all of them do",
            )

    @property
    def tuning(self) -> tuple[int, ...]:
        """The seeds that the learning rate is chosen by."""
        return self.seeds[: self.tuning_seeds]


def run_comparison(plan: Plan) -> list[ComparedRun]:
    """Make the runs of a comparison that are not there yet, and write runs.csv and comparison.png.

    First every method tries every learning rate with the tuning seeds, then its best one with the other seeds.

    Raises:
        ConfigError: The config or an override is wrong, or `plan.out` holds another comparison or other files, or is in
            use.
    """
    from filelock import FileLock, Timeout

    check_out_folder(plan.out)
    check_ours(plan.out, COMPARISON, overwrite=plan.overwrite)
    plan.out.mkdir(parents=True, exist_ok=True)
    try:
        # Two at a time would delete what the other one's run has written so far.
        with FileLock(plan.out / ".lock", timeout=0):
            return _run_comparison(plan)
    except Timeout as error:
        raise ConfigError(
            "Another process writes to the folder of the comparison.",
            got=str(plan.out),
            expected="a folder that one comparison uses at a time",
            fix="wait for it, or name another folder with --out; --workers makes several runs at a time",
        ) from error


def _run_comparison(plan: Plan) -> list[ComparedRun]:
    from pera_lightning.analysis.method_comparison import best_learning_rate, summarise
    from pera_lightning.analysis.method_table import write_runs
    from pera_lightning.analysis.plots.figure import save_figure
    from pera_lightning.analysis.plots.methods import plot_methods

    cell = make_cells(plan)
    tuned = [
        cell(method, rate, seed) for method in plan.methods for rate in plan.learning_rates for seed in plan.tuning
    ]
    runs = _run_all(tuned, plan.workers, "each learning rate")
    best = {method: best_learning_rate(runs, method, plan.tuning, plan.mode) for method in plan.methods}
    others = plan.seeds[plan.tuning_seeds :]
    final = [cell(method, rate, seed) for method, rate in best.items() if rate is not None for seed in others]
    runs += _run_all(final, plan.workers, "the best, other seeds")
    figure = plot_methods(runs, summarise(runs, plan.tuning, plan.mode), plan.selection, plan.report)
    with whole_folder(plan.out, COMPARISON, overwrite=plan.overwrite) as new:
        write_runs(runs, new / "runs.csv")
        save_figure(figure, new / "comparison.png")
        shutil.copyfile(plan.out / SETTINGS, new / SETTINGS)
    return runs


def make_cells(plan: Plan) -> Callable[[str, float, int], Cell]:
    """What makes the cells of a plan, after a look at the config of each method."""
    from pera_lightning.cli.compare.method_checks import check_method
    from pera_lightning.cli.compare.single_run import Cell
    from pera_lightning.cli.estimate.parsed_fit import parse_fit

    # With some learning rate, the same for every plan: a wrong name of the option should not wait for the first run.
    rate = (f"--{plan.learning_rate_option}", "1.0")
    words = {method: shlex.split(text) for method, text in plan.methods.items()}
    parsed = {method: parse_fit("compare", [*plan.words, *own, *rate]).as_dict() for method, own in words.items()}
    for method, options in parsed.items():
        # It is of no fit.
        options.pop("overwrite", None)
        check_fit(method, words[method], options, plan.learning_rate_option)
        check_method(method, options)
    keep_settings(plan.out, {"selection": plan.selection, "report": plan.report}, parsed)
    first = next(iter(parsed.values()))
    takes_seed = "seed" in ((first.get("data") or {}).get("init_args") or {})

    def cell(method: str, learning_rate: float, seed: int) -> Cell:
        folder = plan.out / "runs" / method / f"lr_{_short(learning_rate)}" / f"seed_{seed}"
        options = [
            *(*plan.words, *words[method]),
            *(f"--{plan.learning_rate_option}", str(learning_rate)),
            *("--seed_everything", str(seed), "--trainer.devices", "1"),
            *(("--data.init_args.seed", str(seed)) if takes_seed else ()),
            *("--pera.adapter_dir", str(folder / "adapter")),
        ]
        return Cell(method, learning_rate, seed, tuple(options), plan.selection, plan.report, folder)

    return cell


def _short(rate: float) -> str:
    """As a person writes it, unless other learning rates would look the same."""
    return f"{rate:g}" if float(f"{rate:g}") == rate else str(rate)


def _run_all(cells: Sequence[Cell], workers: int, title: str) -> list[ComparedRun]:
    """The results of all cells in their order, those that are missing made first."""
    from rich.console import Console
    from rich.progress import track

    missing = [cell for cell in cells if cell.result() is None]
    if missing:
        # Bound to the screen: what a run in this process prints is kept in a file.
        console = Console(file=sys.stdout)
        made = _made_here(missing) if workers == 1 else _made_by_workers(missing, workers)
        for run in track(made, title, total=len(missing), console=console):
            values = "diverged" if run.diverged else f"validation {run.selection:.4f}, test {run.report:.4f}"
            line = f"{run.method}, learning rate {run.learning_rate:g}, seed {run.seed}: {values}"
            console.print(visible(line), markup=False, emoji=False)
    return [found for cell in cells if (found := cell.result()) is not None]


def _made_here(cells: Sequence[Cell]) -> Iterator[ComparedRun]:
    from pera_lightning.cli.compare.single_run import run_cell

    return map(run_cell, cells)


def _made_by_workers(cells: Sequence[Cell], workers: int) -> Iterator[ComparedRun]:
    from pera_lightning.cli.compare.single_run import run_cell

    # Forked processes could not use a GPU that this one has touched.
    pool = ProcessPoolExecutor(min(workers, len(cells)), mp_context=multiprocessing.get_context("spawn"))
    try:
        for future in as_completed([pool.submit(run_cell, cell) for cell in cells]):
            yield future.result()
    finally:
        # Not left to a with statement: it would take the cancellation back before it is done.
        pool.shutdown(cancel_futures=True)
