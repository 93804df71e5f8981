"""The SLURM script, with stand-ins for SLURM's commands, and what it relies on in Lightning and PeraCallback."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from torchdata.stateful_dataloader import StatefulDataLoader

from tests.conftest import ROOT
from tests.integration.test_resume import check_rest
from tests.support.noisy import Noisy, train

pytestmark = [
    # Of Lightning about the run that is gone on with, and of torchdata about torch.
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
]

SCRIPT = ROOT / "examples" / "slurm" / "several_nodes.sh"
JOB = {
    "SLURM_JOB_ID": "4242",
    "SLURM_JOB_NAME": "pera",
    "SLURM_NNODES": "1",
    "SLURM_NTASKS": "1",
    "SLURM_NTASKS_PER_NODE": "1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}


def submit(folder: Path, srun: str) -> tuple[int, list[str]]:
    """Run the script with this `srun`; returns its exit code and the commands it gave."""
    commands = {"srun": f'echo "srun $*" >> calls\n{srun}', "scontrol": 'echo "scontrol $*" >> calls'}
    for name, body in commands.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    job = {**JOB, "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "4", "CHECKPOINTS": "checkpoints"}
    environment = {**os.environ, **job, "PATH": f"{folder}:{os.environ['PATH']}"}
    (folder / "calls").unlink(missing_ok=True)
    done = subprocess.run(["bash", str(SCRIPT), "--config", "my.yaml"], cwd=folder, env=environment, check=False)
    return done.returncode, (folder / "calls").read_text().splitlines()


def test_the_script_requeues_the_job_whose_time_was_up_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    fit = (
        "srun --kill-on-bad-exit=1 python -m pera_lightning fit --config my.yaml "
        "--trainer.num_nodes 2 --trainer.devices 4 --ckpt_path last"
    )
    # The clock of files may be coarse.
    saves = "sleep 0.05; touch checkpoints/last-sigterm.ckpt"
    assert submit(tmp_path, saves) == (0, [fit, "scontrol requeue 4242"])
    assert submit(tmp_path, "true") == (0, [fit])
    assert submit(tmp_path, "exit 3") == (3, [fit])


class OutOfTime(Noisy):
    """SLURM's SIGTERM comes in batch 4 of epoch 1."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        if (self.current_epoch, batch_idx) == (1, 4):
            os.kill(os.getpid(), signal.SIGTERM)
        return super().training_step(batch, batch_idx)


def test_a_job_whose_time_is_up_goes_on_as_if_it_had_not_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    # Lightning puts them into the environment.
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    with pytest.raises(SIGTERMException):
        train(tmp_path / "job", OutOfTime(StatefulDataLoader), 1)
    saved = torch.load(tmp_path / "job" / "last-sigterm.ckpt", weights_only=True)
    assert saved["state_dict"]
    assert all("pera_" in name for name in saved["state_dict"])
    rest, whole = Noisy(StatefulDataLoader), Noisy(StatefulDataLoader)
    trainer = train(tmp_path / "job", rest, 99, "last")
    assert isinstance(trainer._accelerator_connector.cluster_environment, SLURMEnvironment)
    assert min(rest.losses) == (1, 5)
    train(tmp_path / "whole", whole, 1)
    check_rest(whole, rest)


def test_tasks_and_devices_must_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**JOB, "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="You set `devices=4` in Lightning"):
        pl.Trainer(accelerator="cpu", devices=4, num_nodes=2, strategy="ddp", logger=False).strategy.launcher.launch(
            int
        )
