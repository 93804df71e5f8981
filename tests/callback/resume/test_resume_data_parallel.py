"""Every one of several processes goes on with its own random numbers and its own accumulated gradients."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.support.processes import run_script


def test_two_processes(tmp_path: Path) -> None:
    run_script("tests.support.two_processes", tmp_path, processes=2)
    runs = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for whole, rest, _ in runs:
        assert rest.keys() == whole.keys() - {(0, 0)}
        assert all(torch.equal(whole[step], loss) for step, loss in rest.items())
    assert not torch.equal(runs[0][0][0, 0], runs[1][0][0, 0])
    assert any("order of the data will differ" in warning for warning in runs[0][2])
