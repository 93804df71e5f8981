"""Two processes train over a quantised base as one process on both their batches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

from tests.conftest import ROOT


def fit(devices: int, folder: Path) -> list[dict[str, Tensor]]:
    folder.mkdir()
    # A free port for each: other fits may run on this machine.
    environment = {name: value for name, value in os.environ.items() if name not in ("MASTER_PORT", "LOCAL_RANK")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.quantized_fit", str(devices), str(folder)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(devices)]


def test_two_processes(tmp_path: Path) -> None:
    [expected] = fit(1, tmp_path / "one")
    first, second = fit(2, tmp_path / "two")
    assert expected
    assert expected.keys() == first.keys() == second.keys()
    for name, value in expected.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-6)
    assert any(value.abs().max() > 0 for name, value in first.items() if name.endswith("pera_h"))
