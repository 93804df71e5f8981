"""A comparison: which runs it has, making those that are missing, and what it writes."""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TYPE_CHECKING

from pera_lightning.cli.compare.comparison_cost import announce
from pera_lightning.cli.compare.comparison_methods import method_of
from pera_lightning.cli.compare.comparison_plan import Plan
from pera_lightning.cli.compare.interrupts import raise_swallowed
from pera_lightning.cli.compare.run_progress import RunProgress
from pera_lightning.cli.compare.settings import RESULT, SETTINGS, check_fit, keep_settings
from pera_lightning.errors import ConfigError, PeraError
from pera_lightning.storage.folder_kind import FolderKind, check_ours
from pera_lightning.storage.out_folder import check_out_folder
from pera_lightning.storage.whole_folder import whole_folder

if TYPE_CHECKING:
    from pera_lightning.analysis.method_comparison import ComparedRun
    from pera_lightning.cli.compare.single_run import Cell

PEFT_FIELDS = "peft"
"""Where the settings of a comparison hold the configuration of PEFT of a method."""
COMPARISON = FolderKind(
    "a comparison",
    marker=SETTINGS,
    recognise=lambda values: {"selection", "report", "methods"} <= values.keys(),
    files=("runs.csv", "comparison.png"),
    # One that was interrupted before its settings were written.
    beside=(".lock",),
)


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
    others = plan.seeds[plan.tuning_seeds :]
    _announce(tuned, others, plan)
    with RunProgress(len(tuned) + len(plan.methods) * len(others)) as progress:
        runs = _run_all(tuned, plan.workers, progress)
        for _ in range(plan.extensions):
            further = [cell(method, rate, seed) for method, rate in _beyond(plan, runs) for seed in plan.tuning]
            progress.expect(len(further))
            runs += _run_all(further, plan.workers, progress)
        best = {method: best_learning_rate(runs, method, plan.tuning, plan.mode) for method in plan.methods}
        final = [cell(method, rate, seed) for method, rate in best.items() if rate is not None for seed in others]
        # A method that always diverged has no other seeds.
        progress.expect(len(final) - len(plan.methods) * len(others))
        runs += _run_all(final, plan.workers, progress)
    figure = plot_methods(runs, summarise(runs, plan.tuning, plan.mode), plan.selection, plan.report)
    with whole_folder(plan.out, COMPARISON, overwrite=plan.overwrite) as new:
        write_runs([*runs, *_of_other_calls(plan, runs)], new / "runs.csv")
        save_figure(figure, new / "comparison.png")
        shutil.copyfile(plan.out / SETTINGS, new / SETTINGS)
    return runs


def _of_other_calls(plan: Plan, runs: Sequence[ComparedRun]) -> list[ComparedRun]:
    """Results in the folder that are none of these: other methods, learning rates or seeds with the same settings."""
    from pera_lightning.cli.compare.single_run import read_result

    here = {(run.method, run.learning_rate, run.seed) for run in runs}
    found = map(read_result, sorted((plan.out / "runs").glob(f"*/lr_*/seed_*/{RESULT}")))
    return [run for run in found if (run.method, run.learning_rate, run.seed) not in here]


def _announce(tuned: Sequence[Cell], others: Sequence[int], plan: Plan) -> None:
    try:
        announce(tuned, others, plan)
    except PeraError:
        if not (plan.out / "runs").exists():
            # Nothing was made with them: corrected ones are no other comparison.
            (plan.out / SETTINGS).unlink()
        raise


def _beyond(plan: Plan, runs: Sequence[ComparedRun]) -> list[tuple[str, float]]:
    """Methods whose best learning rate is at an end of what they tried, and the next one beyond it."""
    from pera_lightning.analysis.method_comparison import best_learning_rate

    found = []
    for method in plan.methods:
        tried = sorted({run.learning_rate for run in runs if run.method == method})
        best = best_learning_rate(runs, method, plan.tuning, plan.mode)
        if best == tried[0]:
            found.append((method, _rounded(best * tried[0] / tried[1])))
        elif best == tried[-1]:
            found.append((method, _rounded(best * tried[-1] / tried[-2])))
    tried_already = {(run.method, run.learning_rate) for run in runs}
    return [each for each in found if each not in tried_already]


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")


def make_cells(plan: Plan) -> Callable[[str, float, int], Cell]:
    """What makes the cells of a plan, after a look at the config of each method."""
    from pera_lightning.cli.compare.method_checks import check_method, check_peft_method
    from pera_lightning.cli.compare.single_run import ADAPTER, Cell
    from pera_lightning.cli.estimate.parsed_fit import parse_fit

    # With some learning rate, the same for every plan: a wrong name of the option should not wait for the first run.
    rate = (f"--{plan.learning_rate_option}", "1.0")
    methods = {name: method_of(text) for name, text in plan.methods.items()}
    parsed = {
        name: parse_fit("compare", [*plan.words, *method.words, *rate]).as_dict() for name, method in methods.items()
    }
    for name, options in parsed.items():
        # It is of no fit.
        options.pop("overwrite", None)
        check_fit(name, methods[name].words, options, plan.learning_rate_option)
        check_method(name, options)
        if methods[name].peft:
            options[PEFT_FIELDS] = check_peft_method(name, methods[name], options)
    keep_settings(plan.out, {"selection": plan.selection, "report": plan.report}, parsed)
    first = next(iter(parsed.values()))
    takes_seed = "seed" in ((first.get("data") or {}).get("init_args") or {})

    def cell(method: str, learning_rate: float, seed: int) -> Cell:
        folder = plan.out / "runs" / method / f"lr_{_short(learning_rate)}" / f"seed_{seed}"
        options = [
            *(*plan.words, *methods[method].words),
            *(f"--{plan.learning_rate_option}", str(learning_rate)),
            *("--seed_everything", str(seed), "--trainer.devices", "1"),
            *(("--data.init_args.seed", str(seed)) if takes_seed else ()),
            *("--pera.adapter_dir", str(folder / ADAPTER)),
        ]
        peft = parsed[method].get(PEFT_FIELDS)
        trainer = parsed[method]["trainer"]
        return Cell(method, learning_rate, seed, tuple(options), plan.selection, plan.report, folder, trainer, peft)

    return cell


def _short(rate: float) -> str:
    """As a person writes it, unless other learning rates would look the same."""
    return f"{rate:g}" if float(f"{rate:g}") == rate else str(rate)


def _run_all(cells: Sequence[Cell], workers: int, progress: RunProgress) -> list[ComparedRun]:
    """The results of all cells in their order, those that are missing made first."""
    missing = [cell for cell in cells if cell.result() is None]
    progress.skip(len(cells) - len(missing))
    if missing:
        for run in _made_here(missing) if workers == 1 else _made_by_workers(missing, workers):
            progress.tell(run)
            raise_swallowed()
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
