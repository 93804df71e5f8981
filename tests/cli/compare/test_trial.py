"""What a comparison takes, told before it starts; and learning rates beyond the grid."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from pera_lightning.analysis.method_comparison import ComparedRun
from pera_lightning.cli.compare.comparison_cost import MethodCost, as_table
from pera_lightning.cli.compare.comparison_plan import Plan
from pera_lightning.cli.compare.run_record import folder_megabytes, forget_peak, peak_megabytes
from pera_lightning.cli.compare.runs import _beyond
from pera_lightning.cli.compare.trial import Times
from pera_lightning.errors import ConfigError
from tests.cli.test_main import run
from tests.support.comparisons import write_fit
from tests.support.trainers import cpu_trainer


def plan(out: Path, **options: Any) -> Plan:
    values = {"methods": {"lora": "", "hira": ""}, "learning_rates": (1e-3, 2e-3, 4e-3), "seeds": (0, 1, 2)}
    return Plan(
        **{
            **{
                "words": (),
                "tuning_seeds": 1,
                "selection": "val_loss",
                "report": "test_loss",
                "mode": "min",
                "out": out,
            },
            **values,
            **options,
        }
    )


def made(method: str, rate: float, value: float | None) -> ComparedRun:
    return ComparedRun(method, rate, 0, value, value, {}, 1.0, 0.0, 10, 4, 1.0)


def test_a_best_rate_at_an_end_of_the_grid_leads_beyond_it(tmp_path: Path) -> None:
    rates = (1e-3, 2e-3, 4e-3)
    lora = [made("lora", rate, value) for rate, value in zip(rates, (0.5, 0.6, 0.7), strict=True)]
    hira = [made("hira", rate, value) for rate, value in zip(rates, (0.7, 0.6, 0.5), strict=True)]
    assert _beyond(plan(tmp_path), [*lora, *hira]) == [("lora", 5e-4), ("hira", 8e-3)]
    # What diverges beyond, or is worse, ends the search: the best is within what was tried.
    assert _beyond(plan(tmp_path), [*lora, *hira, made("lora", 5e-4, 0.6), made("hira", 8e-3, None)]) == []


def test_rates_that_are_nearly_the_same_are_not_tried_twice(tmp_path: Path) -> None:
    runs = [made("lora", 0.01, 0.5), made("lora", 0.01001, 0.6)]
    assert _beyond(plan(tmp_path, methods={"lora": ""}), runs) in ([], [("lora", 0.00999)])
    assert _beyond(plan(tmp_path, methods={"lora": ""}), [made("lora", 0.01, 0.5), made("lora", 0.010001, 0.6)]) == []


def test_one_rate_cannot_be_extended(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="step between its last two"):
        plan(tmp_path, learning_rates=(1e-3,), extensions=1)
    with pytest.raises(ConfigError, match="step between its last two"):
        plan(tmp_path, extensions=-1)


class Rows(pl.LightningModule):
    """Sleeps, as a model of a known speed would compute."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self.layer(batch[0]).mean()

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None: ...

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def rows(count: int) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.zeros(count, 2)), batch_size=2)


SECONDS = {"train": 60.0, "val": 6.0, "test": 0.6}


@pytest.mark.parametrize(
    ("options", "batches", "validations"),
    [
        ({"max_epochs": 3}, 3 * 10, 3 + 1),
        ({"max_epochs": 3, "check_val_every_n_epoch": 5}, 3 * 10, 1),
        ({"max_steps": 7}, 7, 1),
        ({"max_steps": 7, "max_epochs": 9, "val_check_interval": 2}, 7, 3 + 1),
        ({"max_epochs": 2, "val_check_interval": 0.5}, 2 * 10, 4 + 1),
        ({"max_epochs": 1, "accumulate_grad_batches": 4}, 3 * 4, 1 + 1),
        ({"max_epochs": None, "max_steps": -1}, 1000 * 10, 1000 + 1),
    ],
)
def test_the_length_of_a_run_follows_from_its_options(
    tmp_path: Path, options: dict[str, Any], batches: int, validations: int
) -> None:
    times = Times({"max_steps": -1, "max_epochs": None, **options, "limit_test_batches": 0.5})
    trainer = cpu_trainer(
        tmp_path,
        times,
        max_steps=4,
        max_epochs=None,
        limit_val_batches=1,
        limit_test_batches=1,
        enable_checkpointing=False,
    )
    module = Rows()
    trainer.fit(module, rows(20), rows(6))
    trainer.test(module, rows(8), verbose=False)
    assert [len(times._seconds[part]) > 0 for part in ("train", "test")] == [True, True]
    times._seconds = {part: [1000.0, seconds, seconds] for part, seconds in SECONDS.items()}
    times._setup = 12.0
    expected = (12.0 + batches * 60 + validations * 3 * 6 + 2 * 0.6) / 60
    assert times.minutes() == pytest.approx(expected)


def test_a_run_of_unknown_length_has_no_minutes() -> None:
    times = Times({"max_steps": -1, "max_epochs": 1})
    times._batches = math.inf
    times._seconds["train"] = [1.0, 1.0]
    assert math.isnan(times.minutes())
    times._options = {"max_steps": 30, "max_epochs": None}
    assert times.minutes() == pytest.approx(0.5)


def test_the_table_adds_up(tmp_path: Path) -> None:
    costs = [MethodCost("lora", 5, 2.0), MethodCost("hira", 5, 4.0)]
    table = as_table(costs, plan(tmp_path, workers=2, extensions=2))
    assert [str(cell) for cell in table.columns[1].cells] == ["5", "5", "10"]
    assert [str(cell) for cell in table.columns[3].cells] == ["10", "20", "15 (2 at a time)"]
    assert "up to 2 runs more" in str(table.caption)


def test_runs_that_are_there_are_not_tried_again(tmp_path: Path) -> None:
    write_fit(tmp_path)
    words = ("--methods", "lora", "--learning_rates", "1e-2", "--seeds", 0, 1, "--tuning_seeds", 1, "--out", "out")
    first = run("compare", "--config", "fit.yaml", *words, folder=tmp_path)
    assert "What the comparison takes" in first
    assert "What the comparison takes" not in run("compare", "--config", "fit.yaml", *words, folder=tmp_path)
    path = tmp_path / "out/runs/lora/lr_0.01/seed_0/run.json"
    kept = json.loads(path.read_text())
    assert dataclasses.fields(ComparedRun)[-1].name == "minutes"
    path.write_text(json.dumps(kept | {"minutes": 123.0}))
    (tmp_path / "out/runs/lora/lr_0.01/seed_1/run.json").unlink()
    again = run("compare", "--config", "fit.yaml", *words, folder=tmp_path)
    # By the run that is there, not by a trial.
    assert "123" in again.partition("(1 of 1)")[0]


def test_peak_memory_grows_with_what_is_held() -> None:
    cpu = torch.device("cpu")
    forget_peak(cpu)
    before = peak_megabytes(cpu)
    if math.isnan(before):
        assert not Path("/proc/self/clear_refs").exists()
        return
    held = torch.ones(20_000_000)
    assert peak_megabytes(cpu) >= before + 70
    del held
    forget_peak(cpu)
    assert peak_megabytes(cpu) <= before + 40


def test_a_folder_without_tensors_has_no_size(tmp_path: Path) -> None:
    assert math.isnan(folder_megabytes(tmp_path / "none"))
    (tmp_path / "part.safetensors").write_bytes(b"0" * 500_000)
    assert folder_megabytes(tmp_path) == 0.5
