"""Every one of several processes goes on with its own random numbers and its own accumulated gradients."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from tests.conftest import ROOT


def test_two_processes(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("MASTER_PORT", "LOCAL_RANK")}
    command = [sys.executable, "-m", "tests.support.two_processes", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for whole, rest, _ in runs:
        assert rest.keys() == whole.keys() - {(0, 0)}
        assert all(torch.equal(whole[step], loss) for step, loss in rest.items())
    assert not torch.equal(runs[0][0][0, 0], runs[1][0][0, 0])
    assert any("order of the data will differ" in warning for warning in runs[0][2])
