from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from pera_lightning.cli.fit.earlier_files import earlier_files_kept

pytestmark = pytest.mark.filterwarnings("ignore:Experiment logs directory .* exists and is not empty:UserWarning")
EARLIER = {"metrics.csv": "step,loss\n0,1.0\n", "config.yaml": "rank: 2\n", "hparams.yaml": "mine: 1\n"}


class Module(pl.LightningModule):
    """Fails where it is told to."""

    def __init__(self, fails: Callable[[str], None]) -> None:
        super().__init__()
        self.layer, self.fails = torch.nn.Linear(2, 1), fails

    def setup(self, stage: str) -> None:
        # As LightningCLI does.
        (Path(str(self.trainer.log_dir)) / "config.yaml").write_text("new")
        self.fails("setup")

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        self.fails(f"step {index}")
        self.log("loss", loss := self.layer(batch).mean(), on_step=True)
        return loss

    def validation_step(self, batch: torch.Tensor, index: int) -> None:
        self.fails("sanity" if self.trainer.sanity_checking else f"evaluation {index}")

    test_step = predict_step = validation_step

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def run(folder: Path, command: str, fails: Callable[[str], None], **options: Any) -> None:
    """Run a Trainer's command over a folder of an earlier run."""
    for name, text in EARLIER.items():
        (folder / name).write_text(text)
    logger = CSVLogger(folder.parent, name="", version=folder.name)
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
    trainer = pl.Trainer(logger=logger, enable_checkpointing=False, **quiet, **{"max_epochs": 1, **options})
    loaders: Any = [DataLoader(torch.ones(4, 2), batch_size=2)] * (2 if command == "fit" else 1)
    with earlier_files_kept(trainer):
        getattr(trainer, command)(Module(fails), *loaders)


def failing(at: str, kind: type[BaseException] = RuntimeError) -> Callable[[str], None]:
    def fail(place: str) -> None:
        if place == at:
            raise kind(at)

    return fail


def kept(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("command", "at"),
    [
        *(("fit", place) for place in ("setup", "sanity", "step 0")),
        *((command, place) for command in ("validate", "test", "predict") for place in ("setup", "evaluation 0")),
    ],
)
def test_a_run_that_fails_before_it_has_done_anything(tmp_path: Path, command: str, at: str) -> None:
    with pytest.raises(RuntimeError, match=at):
        run(tmp_path, command, failing(at))
    assert kept(tmp_path) == EARLIER


def test_after_ctrl_c(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit):
            run(tmp_path, "fit", failing("sanity", KeyboardInterrupt))
    finally:
        signal.signal(signal.SIGINT, before)
    assert kept(tmp_path) == EARLIER


def test_a_fit_that_has_nothing_left_to_do(tmp_path: Path) -> None:
    run(tmp_path, "fit", failing("nowhere"), max_epochs=0)
    assert kept(tmp_path) == EARLIER


@pytest.mark.parametrize(("command", "at"), [("fit", "step 1"), ("fit", "evaluation 0"), ("test", "evaluation 1")])
def test_a_run_that_has_begun_replaces_them(tmp_path: Path, command: str, at: str) -> None:
    with pytest.raises(RuntimeError, match=at):
        run(tmp_path, command, failing(at))
    assert kept(tmp_path)["config.yaml"] == "new"
    assert kept(tmp_path).get("metrics.csv") != EARLIER["metrics.csv"]


def test_processes_that_the_trainer_starts_tell_that_they_have_begun(tmp_path: Path) -> None:
    run(tmp_path, "test", failing("nowhere"), strategy="ddp_fork", devices=1)
    assert kept(tmp_path)["config.yaml"] == "new"


@pytest.mark.parametrize(("at", "is_left"), [("setup", False), ("sanity", False), ("step 1", True)])
def test_a_failed_start_leaves_no_folder(tmp_path: Path, at: str, is_left: bool) -> None:
    logger = CSVLogger(tmp_path, name="runs")
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(accelerator="cpu", logger=logger, max_epochs=1, log_every_n_steps=1, **quiet)
    folder = Path(logger.log_dir)
    loaders: Any = [DataLoader(torch.ones(4, 2), batch_size=2)] * 2
    module = Module(failing(at))
    module.setup = lambda stage: (folder.mkdir(parents=True, exist_ok=True), module.fails("setup"))  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match=at), earlier_files_kept(trainer):
        trainer.fit(module, *loaders)
    assert folder.is_dir() == is_left
