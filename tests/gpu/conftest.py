"""The device of the tests, and where their failures are written down."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.conftest import NO_GPU
from tests.gpu.failures import note

# Read when cuBLAS is first used; without it torch's deterministic mode refuses its products.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

DEVICE = os.environ.get("PERA_TEST_GPU_DEVICE", "cuda")
FAILURES = os.environ.get("PERA_TEST_FAILURES")
NO_COUNTERPART = "has no counterpart on a CPU"


@pytest.fixture(scope="session", autouse=True)
def device() -> torch.device:
    """Where the tests compute."""
    if DEVICE == "cuda" and not torch.cuda.is_available():
        pytest.skip(NO_GPU)
    return torch.device(DEVICE)


@pytest.fixture
def cuda(device: torch.device) -> torch.device:
    """The same, for what a CPU has nothing like."""
    if device.type != "cuda":
        pytest.skip(NO_COUNTERPART)
    return device


@pytest.fixture(scope="session")
def accelerator(device: torch.device) -> str:
    """Lightning's name of the device."""
    return "gpu" if device.type == "cuda" else "cpu"


def pytest_collectreport(report: pytest.CollectReport) -> None:
    note(report, FAILURES)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[Any]:
    report = yield
    note(report, FAILURES)
    return report
