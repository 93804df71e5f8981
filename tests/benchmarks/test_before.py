"""A version beside another one, in one process."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from benchmarks.before import OPTIONS

ROOT = Path(__file__).parents[2]


def test_this_version_beside_itself() -> None:
    command = [sys.executable, "-m", "benchmarks.before", str(ROOT)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    ratios = [float(ratio) for ratio in re.findall(r": ([\d.]+) times faster", done.stdout)]
    assert len(ratios) == len(OPTIONS)
    # Of processor time, on a machine that may be doing anything else.
    assert all(0.1 < ratio < 10 for ratio in ratios)
