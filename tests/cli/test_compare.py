"""`compare`: methods x learning rates x seeds of a small fit, resumed, and refused."""

from __future__ import annotations

import csv
import json
import logging
import math
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

from pera_lightning import PeraSequenceClassifier
from pera_lightning.analysis import inspect_adapter
from pera_lightning.analysis.method_table import read_runs
from pera_lightning.cli.compare import METHODS, _method, _mode
from pera_lightning.cli.compare_run import Cell, _Record, run_cell
from pera_lightning.cli.comparison import Plan, make_cells
from pera_lightning.errors import ConfigError, DataError, TrainingError
from tests.cli.test_main import run
from tests.support.classifiers import save_encoder, write_task

RATES = ("--learning_rates", "1e-3", "1e-2")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny encoder, a task and the config of a fit."""
    folder = tmp_path_factory.mktemp("compare")
    save_encoder(folder / "model")
    write_task(folder / "cola", "cola", 24)
    config = {
        "seed_everything": 0,
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 2,
            "log_every_n_steps": 1,
            "logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "elsewhere"}},
            "callbacks": [
                {"class_path": "ModelCheckpoint", "init_args": {"monitor": "val_loss", "dirpath": "elsewhere"}}
            ],
        },
        "pera": {"rank": 2, "adapter_dir": "elsewhere"},
        "model": {"class_path": "PeraSequenceClassifier", "init_args": {"pretrained": "model"}},
        "data": {
            "class_path": "GlueDataModule",
            "init_args": {"task": "cola", "folder": "cola", "batch_size": 8, "max_train_rows": 16},
        },
    }
    (folder / "fit.yaml").write_text(yaml.safe_dump(config))
    return folder


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
    for path, (time, values) in before.items():
        again = json.loads(path.read_text())
        assert (path.stat().st_mtime_ns != time) == (path == lost)
        # The same run gives the same numbers, but for its time.
        assert again | {"step_ms": 0} == values | {"step_ms": 0}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((*RATES, "--methods", "loras"), "no method of that name"),
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
        ((*RATES, "--out", "new", "--learning_rate_option", "model.lr"), "key='lr'"),
        ((*RATES, "--out", "new", "--pera.rnk", 2), "rnk"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(
    project: Path, compared: str, words: tuple[object, ...], message: str
) -> None:
    assert message in compare(project, *words, ok=False)
    assert not (project / "new" / "runs").exists()


def cell(
    project: Path, folder: Path, *words: str, selection: str = "val_accuracy", report: str = "test_accuracy"
) -> Cell:
    return Cell("lora", 1e-3, 0, ("--config", "fit.yaml", *words), selection, report, folder)


@pytest.fixture
def inside(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(project)
    return project


def test_a_run_that_diverged_is_a_result(inside: Path, tmp_path: Path) -> None:
    words = ("--model.init_args.learning_rate", "1e30", "--model.init_args.schedule", "constant")
    found = run_cell(cell(inside, tmp_path, *words))
    assert found.diverged
    assert "not finite" in found.reason
    assert found.selection is found.report is None
    assert json.loads((tmp_path / "run.json").read_text())["reason"] == found.reason


def test_a_run_that_diverged_in_its_last_step_is_one(inside: Path, tmp_path: Path) -> None:
    words = ("--model.init_args.learning_rate", "1e30", "--model.init_args.schedule", "constant")
    found = run_cell(cell(inside, tmp_path, *words, "--trainer.max_steps", "1", "--trainer.callbacks", "null"))
    # The accuracy is finite: that of always the same class.
    assert math.isfinite(found.metrics["test_accuracy"])
    assert (found.diverged, found.reason, found.energy) == (True, "val_loss is not finite", 0)


def test_weights_that_are_not_finite_are_no_result(
    inside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = _Record.on_test_end

    def with_infinite_h(self: _Record, trainer: Any, module: Any) -> None:
        [value, *_] = [value for name, value in module.named_parameters() if name.endswith("pera_h")]
        value.data.fill_(math.inf)
        measure(self, trainer, module)

    monkeypatch.setattr(_Record, "on_test_end", with_infinite_h)
    found = run_cell(cell(inside, tmp_path))
    assert (found.diverged, found.reason, found.selection, found.report) == (True, "a weight is not finite", None, None)


def test_steps_are_those_of_the_optimizer(inside: Path, tmp_path: Path) -> None:
    one = run_cell(cell(inside, tmp_path / "one"))
    four = run_cell(cell(inside, tmp_path / "four", "--trainer.accumulate_grad_batches", "2"))
    assert (one.steps, four.steps) == (4, 2)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_energy_is_that_of_the_weights_that_are_tested(inside: Path, tmp_path: Path, mode: str) -> None:
    callback = {"class_path": "ModelCheckpoint", "init_args": {"monitor": "val_loss", "mode": mode}}
    (tmp_path / "best.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [callback]}}))
    adapter = ("--pera.adapter_dir", str(tmp_path / "adapter"), "--pera.coefficient_scale", "30")
    found = run_cell(cell(inside, tmp_path, "--config", str(tmp_path / "best.yaml"), *adapter))
    layers = inspect_adapter(tmp_path / "adapter").layers
    assert found.energy == pytest.approx(statistics.fmean(layer.polynomial_energy for layer in layers), rel=1e-5)


def test_an_interrupted_run_is_not_taken_for_a_wrong_option(
    inside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise SystemExit(1)

    monkeypatch.setattr("pera_lightning.cli.compare_run.make_cli", interrupted)
    with pytest.raises(SystemExit):
        run_cell(cell(inside, tmp_path))


@pytest.mark.parametrize("text", ["", "{", "{}", "[1]"])
def test_damaged_files_are_named(project: Path, compared: str, tmp_path: Path, text: str) -> None:
    words = ("--methods", "lora", *RATES, "--seeds", 0, "--metric", "accuracy", "--out", tmp_path / "out")
    shutil.copytree(project / "out", tmp_path / "out")
    result = tmp_path / "out/runs/lora/lr_0.01/seed_0/run.json"
    result.write_text(text)
    assert f"got:      {result}: " in compare(project, *words, ok=False)
    (tmp_path / "out/settings.json").write_text(text)
    assert "settings of a comparison are damaged" in compare(project, *words, ok=False)


def test_two_comparisons_at_a_time_need_two_folders(project: Path, compared: str) -> None:
    words = ("--methods", "lora", *RATES, "--seeds", 0, "--metric", "accuracy", "--out", "out")
    with FileLock(project / "out" / ".lock"):
        assert "Another process writes" in compare(project, *words, ok=False)
    assert "test_accuracy" in compare(project, *words)


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


def test_a_run_leaves_the_loggers_as_they_were(inside: Path, tmp_path: Path) -> None:
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "transformers")]
    before = [logger.level for logger in loggers]
    run_cell(cell(inside, tmp_path))
    assert [logger.level for logger in loggers] == before


def test_an_unknown_metric_is_refused_with_those_there_are(inside: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="test_accuracy, test_f1, test_loss, test_matthews, val_accuracy"):
        run_cell(cell(inside, tmp_path, report="test_bleu"))
    assert not (tmp_path / "run.json").exists()


def test_a_metric_that_validation_does_not_log_is_refused_before_the_training(inside: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no val_bleu.*\n.*expected: val_accuracy, val_f1, val_loss, val_matthews"):
        run_cell(cell(inside, tmp_path, "--trainer.num_sanity_val_steps", "0", selection="val_bleu"))
    assert not (tmp_path / "logs" / "metrics.csv").exists()


def test_a_module_that_logs_nothing_in_the_sanity_check_is_trained(
    inside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = PeraSequenceClassifier.log

    def quiet(self: PeraSequenceClassifier, *args: Any, **options: Any) -> None:
        if not self.trainer.sanity_checking:
            log(self, *args, **options)

    monkeypatch.setattr(PeraSequenceClassifier, "log", quiet)
    assert run_cell(cell(inside, tmp_path)).selection is not None


def test_what_the_command_line_of_a_fit_refuses_is_said(inside: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cubic"):
        run_cell(cell(inside, tmp_path, "--pera.terms", "cubic"))
    assert not (tmp_path / "run.json").exists()


def test_methods_are_options_of_a_fit() -> None:
    assert _method("full") == ("full", METHODS["full"])
    assert _method("h=--pera.coefficient_scale 3") == ("h", "--pera.coefficient_scale 3")


def test_options_of_a_method_may_hold_blanks(inside: Path, tmp_path: Path) -> None:
    methods = {"few": '--pera.target_modules \'["query", "value"]\''}
    cells = make_cells(
        Plan(("--config", "fit.yaml"), methods, (1e-2,), (0,), 1, "val_loss", "test_loss", "min", tmp_path)
    )
    assert '["query", "value"]' in cells("few", 1e-2, 0).words


def test_what_else_goes_wrong_is_no_result(inside: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        run_cell(cell(inside, tmp_path, "--data.init_args.folder", "nowhere"))
    assert not (tmp_path / "run.json").exists()


def test_workers_are_processes_of_their_own(project: Path) -> None:
    words = ("--methods", "lora", "--learning_rates", "1e-3", "--seeds", 0, 1, "--workers", 2, "--out", "parallel")
    words = (*words, "--metric", "val_loss", "test_loss")
    printed = compare(project, *words)
    assert "test_loss, each method at its own best learning rate" in printed
    assert [run.seed for run in read_runs(project / "parallel" / "runs.csv")] == [0, 1]


def test_seeds_decide_the_order_of_the_data_too(project: Path, compared: str) -> None:
    for path in (project / "out").rglob("config.yaml"):
        config = yaml.safe_load(path.read_text())
        seed = int(path.parent.parent.name.removeprefix("seed_"))
        assert config["seed_everything"] == config["data"]["init_args"]["seed"] == seed


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_checkpoint_that_the_config_calls_best_counts(inside: Path, tmp_path: Path, mode: str) -> None:
    callback = {"class_path": "ModelCheckpoint", "init_args": {"monitor": "val_loss", "mode": mode}}
    (tmp_path / "best.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [callback]}}))
    found = run_cell(cell(inside, tmp_path, "--config", str(tmp_path / "best.yaml")))
    with (tmp_path / "logs" / "metrics.csv").open() as file:
        losses = [float(row["val_loss"]) for row in csv.DictReader(file) if row["val_loss"]]
    assert len(set(losses)) == 2
    assert found.metrics["val_loss"] == pytest.approx((min if mode == "min" else max)(losses), rel=1e-6)


def test_an_error_of_training_that_is_no_divergence_is_no_result(
    inside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise TrainingError("A parameter of the frozen base is trained.", got="one", expected="none", fix="freeze it")

    monkeypatch.setattr("pera_lightning.cli.compare_run.make_cli", fails)
    with pytest.raises(TrainingError, match="frozen base"):
        run_cell(cell(inside, tmp_path))
    assert not (tmp_path / "run.json").exists()
