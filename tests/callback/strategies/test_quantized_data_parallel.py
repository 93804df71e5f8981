"""Two processes train over a quantised base as one process on both their batches."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tests.support.processes import run_script


def fit(devices: int, folder: Path) -> list[dict[str, Tensor]]:
    folder.mkdir()
    run_script("tests.support.quantized_fit", devices, folder, processes=devices)
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
