"""`compare`: methods x learning rates x seeds of a small fit, resumed, and refused."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from pera_lightning import requirements
from pera_lightning.analysis.method_table import read_runs
from pera_lightning.cli.compare.command import _mode
from pera_lightning.cli.compare.comparison_methods import METHODS, method_of, named_methods
from pera_lightning.cli.compare.comparison_plan import Plan
from pera_lightning.cli.compare.runs import _made_by_workers, make_cells
from pera_lightning.errors import TrainingError
from tests.cli.test_main import run
from tests.support.comparisons import write_fit

RATES = ("--learning_rates", "1e-3", "1e-2")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fit(tmp_path_factory.mktemp("compare"))


def compare(project: Path, *words: object, ok: bool = True) -> str:
    return run("compare", "--config", "fit.yaml", *words, folder=project, ok=ok)


@pytest.fixture(scope="module")
def compared(project: Path) -> str:
    words = ("--methods", "lora", "h30=--pera.coefficient_scale 30", *RATES, "--seeds", 0, 1, "--tuning_seeds", 1)
    return compare(project, *words, "--metric", "accuracy", "--out", "out")


def test_every_rate_with_the_tuning_seeds_and_the_best_with_the_others(project: Path, compared: str) -> None:
    runs = read_runs(project / "out" / "runs.csv")
    made = {(run.method, run.learning_rate, run.seed) for run in runs}
    tuned = {(method, rate, 0) for method in ("lora", "h30") for rate in (1e-3, 1e-2)}
    assert tuned < made
    assert len(made) == len(runs) == 6
    for method in ("lora", "h30"):
        tried = {run.learning_rate: run.selection for run in runs if run.method == method and run.seed == 0}
        [(rate, _)] = [(rate, seed) for name, rate, seed in made - tuned if name == method]
        assert tried[rate] == max(filter(None, tried.values()))
    assert "test_accuracy, each method at its own best learning rate" in compared
    assert (project / "out" / "comparison.png").stat().st_size > 10_000


def test_the_table_of_runs_keeps_those_of_other_calls(project: Path, compared: str, tmp_path: Path) -> None:
    out = shutil.copytree(project / "out", tmp_path / "out")
    before = read_runs(out / "runs.csv")
    words = ("--methods", "h30=--pera.coefficient_scale 30", "--learning_rates", "1e-3", "--seeds", 0)
    printed = compare(project, *words, "--metric", "accuracy", "--out", out)
    assert "One method alone" in printed
    assert sorted(read_runs(out / "runs.csv"), key=str) == sorted(before, key=str)


def test_files_of_the_config_are_left_alone(project: Path, compared: str) -> None:
    found = {path.name for path in (project / "out/runs/lora/lr_0.01/seed_0").iterdir()}
    assert found == {"adapter", "checkpoints", "logs", "log.txt", "run.json"}
    assert not (project / "elsewhere").exists()


def test_runs_measure_what_a_fit_measures(project: Path, compared: str) -> None:
    runs = {(run.method, run.learning_rate, run.seed): run for run in read_runs(project / "out" / "runs.csv")}
    lora, other = runs["lora", 1e-2, 0], runs["h30", 1e-2, 0]
    assert lora.steps == other.steps == 4
    assert lora.energy == 0 < other.energy
    # Three products of two components in each of the layers.
    layers = len(
        json.loads((project / "out/runs/h30/lr_0.01/seed_0/adapter/adapter_config.json").read_text())["layers"]
    )
    assert other.trainable - lora.trainable == 3 * layers > 0
    assert lora.metrics["test_accuracy"] == lora.report
    words = ("--pera.order", 1, "--model.init_args.learning_rate", "1e-2", "--trainer.logger", "false")
    run("fit", "--config", "fit.yaml", *words, "--pera.adapter_dir", "alone", folder=project)
    alone = (project / "alone/adapter_model.safetensors").read_bytes()
    assert alone == (project / "out/runs/lora/lr_0.01/seed_0/adapter/adapter_model.safetensors").read_bytes()


def test_goes_on_with_the_runs_that_are_missing(project: Path, compared: str) -> None:
    paths = sorted((project / "out").rglob("run.json"))
    before = {path: (path.stat().st_mtime_ns, json.loads(path.read_text())) for path in paths}
    lost = paths[0]
    lost.unlink()
    words = ("--methods", "lora", "h30=--pera.coefficient_scale 30", *RATES, "--seeds", 0, 1, "--tuning_seeds", 1)
    printed = compare(project, *words, "--metric", "accuracy", "--out", "out")
    assert printed.count("validation 0.") == 1
    for path, (changed, values) in before.items():
        again = json.loads(path.read_text())
        assert (path.stat().st_mtime_ns != changed) == (path == lost)
        # The same run gives the same numbers, but for its time.
        measured = dict.fromkeys(("step_ms", "minutes", "peak_mb"), 0)
        assert again | measured == values | measured


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((*RATES, "--methods", "loras"), "did you mean lora"),
        ((*RATES, "--methods", "ful_auto"), "did you mean full_auto"),
        ((*RATES, "--out", "new", "--methods", "lora", "x=--pera.alpha -1"), "The method x cannot run."),
        (
            (*RATES, "--out", "new", "--methods", "lora", "x=--model.init_args.warmup_ratio 2"),
            "The method x cannot run.",
        ),
        ((*RATES, "--methods", "a b=--pera.order 1"), "becomes the name of a folder"),
        ((*RATES, "--seeds", 1, 1), "each once"),
        ((*RATES, "--seeds", 1, "--tuning_seeds", 2), "a number from 1 to 1"),
        ((*RATES, "--out", "out", "--metric", "accuracy", "--pera.rank", 3), "lora.pera.rank: 3 here, 2 there"),
        (
            (*RATES, "--out", "out", "--metric", "f1", "--methods", "cross"),
            "selection: val_f1 here, val_accuracy there",
        ),
        ((*RATES, "--metric", "score"), "does not say whether more of it is better"),
        ((*RATES, "--metric", "loss_accuracy"), "does not say whether more of it is better"),
        ((*RATES, "--methods", "a=--pera.alpha 1", "a=--pera.alpha 2"), "each name once"),
        ((*RATES, "--methods", "..=--pera.alpha 1"), "not as the first one, dots"),
        ((*RATES, "--out", "new", "--methods", "a=--model.init_args.learning_rate 1"), "those of the comparison"),
        ((*RATES, "--out", "new", "--methods", "a=--seed_everything=1"), "those of the comparison"),
        (("--learning_rates", 1e-2, 0), "numbers above 0"),
        (("--learning_rates", "inf"), "numbers above 0"),
        ((*RATES, "--seeds", -1), "from 0 to 4294967295"),
        ((*RATES, "--out", "new", "--ckpt_path", "some.ckpt"), "start from the same untrained adapter"),
        ((*RATES, "--out", "new", "--trainer.fast_dev_run", "true"), "needs whole runs"),
        ((*RATES, "--out", "fit.yaml"), "which is a file"),
        ((*RATES, "--out", "fit.yaml/below"), "which is a file"),
        ((*RATES, "--metric", "f1", "loss", "accuracy"), "One metric is compared by"),
        ((*RATES, "--out", "new", "--trainer.devices", 2), "made by one process"),
        ((*RATES, "--out", "new", "--pera.rank", 0), "rank"),
        ((*RATES, "--out", "new", "--workers", 0), "a number of 1 or more"),
        ((*RATES, "--out", "new", "--learning_rate_option", "model.lr"), "got:      model.lr"),
        ((*RATES, "--out", "new", "--pera.rnk", 2), "rnk"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(
    project: Path, compared: str, words: tuple[object, ...], message: str
) -> None:
    assert message in compare(project, *words, ok=False)
    assert not (project / "new" / "runs").exists()


def test_a_missing_package_is_said_before_the_first_run(
    project: Path, compared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(requirements.MODULES, "bitsandbytes", "no_such_module")
    words = ("--methods", "lora", "small=--model.init_args.optimizer adamw_8bit", "--out", "new")
    printed = compare(project, *RATES, *words, ok=False)
    assert "The method small cannot run." in printed
    assert "bitsandbytes is not installed" in printed
    assert "pip install" in printed
    assert not (project / "new" / "runs").exists()


def test_a_method_that_is_lora_is_called_so(project: Path, compared: str) -> None:
    words = ("--methods", "lora", "full", "h=--pera.coefficient_scale 1e5")
    printed = compare(
        project, *words, "--learning_rates", "1e-2", "--seeds", 0, "--metric", "accuracy", "--out", "same"
    )
    [line] = [line for line in printed.splitlines() if "identical to LoRA" in line]
    assert line.startswith("full: energy ")
    assert line.endswith("; try full_auto")


@pytest.fixture
def inside(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(project)
    return project


@pytest.mark.parametrize("text", ["", "{", "{}", "[1]"])
def test_damaged_files_are_named(project: Path, compared: str, tmp_path: Path, text: str) -> None:
    words = ("--methods", "lora", *RATES, "--seeds", 0, "--metric", "accuracy", "--out", tmp_path / "out")
    shutil.copytree(project / "out", tmp_path / "out")
    result = tmp_path / "out/runs/lora/lr_0.01/seed_0/run.json"
    result.write_text(text)
    assert f"got:      {result}: " in compare(project, *words, ok=False)
    (tmp_path / "out/settings.json").write_text(text)
    assert "The folder is not ours" in compare(project, *words, ok=False)
    assert "settings of a comparison are damaged" in compare(project, *words, "--overwrite", "true", ok=False)


def test_two_comparisons_at_a_time_need_two_folders(project: Path, compared: str) -> None:
    words = ("--methods", "lora", *RATES, "--seeds", 0, "--metric", "accuracy", "--out", "out")
    with FileLock(project / "out" / ".lock"):
        assert "Another process writes" in compare(project, *words, ok=False)
    assert "test_accuracy" in compare(project, *words)


def test_the_learning_rate_is_the_best_of_the_metric_to_select_by(project: Path, compared: str, tmp_path: Path) -> None:
    """Selected by a loss, of which less is better, reported as an accuracy."""
    words = ("--methods", "lora", *RATES, "--seeds", 0, "--metric", "val_loss", "test_accuracy", "--out", tmp_path)
    table = compare(project, *words)
    losses = {run.learning_rate: run.selection or 0.0 for run in read_runs(tmp_path / "runs.csv")}
    assert len(set(losses.values())) == 2
    [row] = [line.split() for line in table.splitlines() if line.strip().startswith("lora ")]
    assert row[1] == f"{min(losses, key=lambda rate: losses[rate]):g}!"


def test_learning_rates_that_look_alike_have_folders_of_their_own(inside: Path, tmp_path: Path) -> None:
    rates = (1e-2, 1.0000001e-2, 3e-4)
    plan = Plan(("--config", "fit.yaml"), {"lora": ""}, rates, (0,), 1, "val_loss", "test_loss", "min", tmp_path)
    cells = make_cells(plan)
    folders = [cells("lora", rate, 0).folder.parent.name for rate in rates]
    assert folders == ["lr_0.01", "lr_0.010000001", "lr_0.0003"]


@pytest.mark.parametrize(
    ("name", "mode"),
    [("val_loss", "min"), ("val/loss_epoch", "min"), ("valid.RMSE", "min"), ("val_f1", "max"), ("val acc", "max")],
)
def test_the_metric_to_select_by_says_what_is_better(name: str, mode: str) -> None:
    assert _mode(name) == mode


def test_methods_are_options_of_a_fit() -> None:
    named = named_methods(["full", "h=--pera.coefficient_scale 3"])
    assert named == {"full": METHODS["full"], "h": "--pera.coefficient_scale 3"}
    assert method_of(named["h"]) == (("--pera.coefficient_scale", "3"), {})


def test_options_of_a_method_may_hold_blanks(inside: Path, tmp_path: Path) -> None:
    methods = {"few": '--pera.target_modules \'["query", "value"]\''}
    cells = make_cells(
        Plan(("--config", "fit.yaml"), methods, (1e-2,), (0,), 1, "val_loss", "test_loss", "min", tmp_path)
    )
    assert '["query", "value"]' in cells("few", 1e-2, 0).words


def test_workers_are_processes_of_their_own(project: Path) -> None:
    words = ("--methods", "lora", "--learning_rates", "1e-3", "--seeds", 0, 1, "--workers", 2, "--out", "parallel")
    words = (*words, "--metric", "val_loss", "test_loss")
    printed = compare(project, *words)
    assert "test_loss, each method at its own best learning rate" in printed
    assert [run.seed for run in read_runs(project / "parallel" / "runs.csv")] == [0, 1]


def fail_the_first(begun: Path) -> None:
    begun.touch()
    if begun.name == "0":
        raise TrainingError("It cannot be made.", got="a run", expected="another", fix="none")
    deadline = time.monotonic() + 10
    while not (begun.parent / "cancelled").exists() and time.monotonic() < deadline:
        time.sleep(0.02)


def test_workers_stop_where_a_run_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cancelled: list[bool] = []

    class Recorded(ProcessPoolExecutor):
        def submit(self, run_cell: Callable[..., None], begun: Path, /) -> Future[None]:  # type: ignore[override]
            future = super().submit(run_cell, begun)
            if begun.name == "39":
                future.add_done_callback(lambda _: (tmp_path / "cancelled").touch())
            return future

        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            cancelled.append(cancel_futures)
            super().shutdown(wait, cancel_futures=cancel_futures)

    monkeypatch.setattr("pera_lightning.cli.compare.runs.ProcessPoolExecutor", Recorded)
    monkeypatch.setattr("pera_lightning.cli.compare.single_run.run_cell", fail_the_first)
    with pytest.raises(TrainingError, match="It cannot be made"):
        list(_made_by_workers([tmp_path / str(number) for number in range(40)], 2))  # type: ignore[misc]
    # Those that a worker had until the last one was cancelled, and those that were handed to it already.
    assert 1 <= len([begun for begun in tmp_path.iterdir() if begun.name.isdecimal()]) <= 8
    # A second call without it, as a with statement makes, can come before the first one has taken effect.
    assert cancelled == [True]


def test_seeds_decide_the_order_of_the_data_too(project: Path, compared: str) -> None:
    for path in (project / "out").rglob("config.yaml"):
        config = yaml.safe_load(path.read_text())
        seed = int(path.parent.parent.name.removeprefix("seed_"))
        assert config["seed_everything"] == config["data"]["init_args"]["seed"] == seed
