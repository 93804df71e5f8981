"""Code in a process of its own, where nothing is imported yet."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "lightning", "transformers", "pyarrow")


def run_lightly(code: str, exit_code: int = 0) -> str:
    """Run code and see to it that it imports none of `HEAVY`; returns what it printed, errors of ours included."""
    script = (
        "import sys\nfrom pera_lightning.errors import PeraError\n"
        f"try:\n    {code}\nexcept PeraError as error:\n    print(error)\n"
        f"finally:\n    assert not {{*{HEAVY}}} & set(sys.modules), sorted(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == exit_code, done.stderr
    assert "AssertionError" not in done.stderr
    return done.stdout
