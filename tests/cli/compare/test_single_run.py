"""One run of a comparison: what it measures, and what is no result."""

from __future__ import annotations

import csv
import json
import logging
import math
import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml

from pera_lightning import PeraSequenceClassifier, WeightedAccumulation
from pera_lightning.analysis import inspect_adapter
from pera_lightning.cli.compare.run_record import RunRecord
from pera_lightning.cli.compare.single_run import Cell, run_cell
from pera_lightning.errors import ConfigError, DataError, TrainingError
from tests.support.comparisons import write_fit


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fit(tmp_path_factory.mktemp("compare"))


@pytest.fixture
def inside(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(project)
    return project


def cell(
    project: Path, folder: Path, *words: str, selection: str = "val_accuracy", report: str = "test_accuracy"
) -> Cell:
    return Cell("lora", 1e-3, 0, ("--config", "fit.yaml", *words), selection, report, folder, {})


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
    measure = RunRecord.on_test_end

    def with_infinite_h(self: RunRecord, trainer: Any, module: Any) -> None:
        [value, *_] = [value for name, value in module.named_parameters() if name.endswith("pera_h")]
        value.data.fill_(math.inf)
        measure(self, trainer, module)

    monkeypatch.setattr(RunRecord, "on_test_end", with_infinite_h)
    found = run_cell(cell(inside, tmp_path))
    assert (found.diverged, found.reason, found.selection, found.report) == (True, "a weight is not finite", None, None)


def test_steps_are_those_of_the_optimizer(inside: Path, tmp_path: Path) -> None:
    one = run_cell(cell(inside, tmp_path / "one"))
    four = run_cell(cell(inside, tmp_path / "four", "--trainer.accumulate_grad_batches", "2"))
    assert (one.steps, four.steps) == (4, 2)


def test_the_time_of_a_step_is_that_of_all_its_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 10.0, 12.0, 20.0, 23.0, 30.0, 34.0])
    monkeypatch.setattr("pera_lightning.cli.compare.single_run.time.perf_counter", lambda: next(clock))
    record = RunRecord("val_loss")
    module = pl.LightningModule()
    for batch in range(4):
        trainer: Any = SimpleNamespace(accumulate_grad_batches=2, global_step=(batch + 1) // 2)
        record.on_train_batch_start(trainer, module, None, batch)
        record.on_train_batch_end(trainer, module, {"loss": 0.25 * batch}, None, batch)
    assert (record.steps, record.seconds) == (2, [1.0 + 2.0, 3.0 + 4.0])
    assert record.losses == [0.25, 1.25]


def test_the_loss_of_a_step_is_over_all_its_tokens() -> None:
    record, module = RunRecord("val_loss"), pl.LightningModule()
    module.accumulation = WeightedAccumulation(module)
    module.accumulation.loss = torch.tensor(0.75)
    trainer: Any = SimpleNamespace(accumulate_grad_batches=1, global_step=1)
    record.on_train_batch_end(trainer, module, {"loss": 0.5}, None, 0)
    assert record.last_losses() == 0.75


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

    monkeypatch.setattr("pera_lightning.cli.compare.single_run.make_cli", interrupted)
    with pytest.raises(SystemExit):
        run_cell(cell(inside, tmp_path))


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


def test_what_else_goes_wrong_is_no_result(inside: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        run_cell(cell(inside, tmp_path, "--data.init_args.folder", "nowhere"))
    assert not (tmp_path / "run.json").exists()


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

    monkeypatch.setattr("pera_lightning.cli.compare.single_run.make_cli", fails)
    with pytest.raises(TrainingError, match="frozen base"):
        run_cell(cell(inside, tmp_path))
    assert not (tmp_path / "run.json").exists()
