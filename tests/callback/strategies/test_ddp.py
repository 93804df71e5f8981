"""Several processes under DDP train as one process on all their batches, and exchange the adapter's gradients only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.data_parallel import EPOCHS, OPTIONS, STEPS
from tests.support.processes import run_script


@pytest.fixture(scope="module")
def fits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fits")
    run_script("tests.support.data_parallel", folder)
    return folder


def found(fits: Path, name: str, processes: int) -> list[dict[str, Any]]:
    return [torch.load(fits / f"{name}-{rank}.pt", weights_only=True) for rank in range(processes)]


def check_same(processes: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    """All processes hold the same bits, and what one process on the whole batches ends with, up to rounding."""
    for process in processes:
        assert process["adapter"].keys() == expected["adapter"].keys()
        for name, value in expected["adapter"].items():
            assert torch.equal(process["adapter"][name], processes[0]["adapter"][name])
            # float32: sums in another order.
            torch.testing.assert_close(process["adapter"][name], value, rtol=1e-4, atol=1e-6)
        for mine, other in zip(process["momentum"], expected["momentum"], strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "processes"), [*((name, 2) for name in OPTIONS), ("order 2", 4)])
def test_train_as_one_process(fits: Path, name: str, processes: int) -> None:
    [expected] = found(fits, f"{name} x1", 1)
    several = found(fits, f"{name} x{processes}", processes)
    check_same(several, expected)
    assert expected["sent"] == 0
    for process in several:
        assert process["sent"] == process["trainable"] == expected["trainable"]
        assert process["finds_unused"] is False
        assert process["folder_written"]


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 4), (2, 1)])
def test_go_on_in_another_number_of_processes(fits: Path, before: int, after: int) -> None:
    [whole] = found(fits, "order 2 x1", 1)
    resumed = found(fits, f"{before} to {after}", after)
    check_same(resumed, whole)
    assert resumed[0]["first_step"] == STEPS // EPOCHS
    words = f"written by {before} processes and training goes on in {after}"
    assert any(words in warning for warning in resumed[0]["warnings"])
    assert not any(words in warning for process in resumed[1:] for warning in process["warnings"])
