"""The ordinary run sees no GPU, wherever it is started: Lightning would take it where a test means the CPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import GPU_RUN, ROOT

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
        "pytest.main(['--collect-only', '-qs', 'tests/test_hidden_gpu.py'], plugins=[Look()])\n"
    )
    environment = {**os.environ, "PYTEST_ADDOPTS": ""}
    found = subprocess.run(
        [sys.executable, "-c", look], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.splitlines()[0] == "False"
