"""The ordinary run sees no GPU, wherever it is started; the run for one skips what it is not there for, and says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import GPU_RUN, NO_GPU, ROOT
from tests.gpu.failures import KEPT, note

# What a process finds of whatever GPUs the machine has.
LOOK = "import os, torch; print(torch.cuda.is_available(), repr(os.environ['CUDA_VISIBLE_DEVICES']))"


@pytest.mark.skipif(GPU_RUN, reason="a GPU run")
def test_processes_that_tests_start_see_none() -> None:
    found = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "''"]


def test_torch_is_imported_after_hiding() -> None:
    """No plugin brings it before the first conftest.py, which is where the variables are set."""
    look = (
        "import sys, pytest\n"
        "class Look:\n"
        "    def pytest_load_initial_conftests(self): print('torch' in sys.modules)\n"
        "pytest.main(['--collect-only', '-qs', 'tests/benchmarks/test_gpu_runs.py'], plugins=[Look()])\n"
    )
    environment = {**os.environ, "PYTEST_ADDOPTS": ""}
    found = subprocess.run(
        [sys.executable, "-c", look], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.splitlines()[0] == "False"


def test_the_run_for_a_gpu_skips_without_one() -> None:
    environment = {**os.environ, "PERA_TEST_GPU": "1", "PERA_TEST_GPU_DEVICE": "cuda", "PYTEST_ADDOPTS": ""}
    command = [sys.executable, "-m", "pytest", "-q", "tests/gpu/test_golden_on_gpu.py"]
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert NO_GPU in found.stdout
    assert "passed" not in found.stdout


def test_the_end_of_a_failure_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "failures.txt"
    lines = "\n".join(f"line {number}" for number in range(100))
    failed = SimpleNamespace(failed=True, nodeid="tests/gpu/test_x.py::test_y", when="call", longrepr=lines)
    note(SimpleNamespace(failed=False), str(path))
    assert not path.exists()
    note(failed, None)
    note(failed, str(path))
    note(failed, str(path))
    written = path.read_text()
    assert written.count("FAILED tests/gpu/test_x.py::test_y (call)") == 2
    assert "line 99" in written
    assert f"line {100 - KEPT - 1}\n" not in written
