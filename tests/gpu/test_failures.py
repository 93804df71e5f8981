"""What a failing test leaves in the file."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from tests.gpu.failures import KEPT, note


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
