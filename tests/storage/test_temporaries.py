from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from pera_lightning.storage import temporaries
from pera_lightning.storage.temporaries import in_use, is_stale, temporary_name


def test_a_process_knows_which_of_its_own_are_in_use() -> None:
    with in_use("note") as name:
        assert not is_stale(name)
        assert not is_stale(f"{name}png")
    assert is_stale(name)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells its starts from each other")
def test_machines_of_one_name_are_told_from_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine has started at another time, whatever else is equal."""
    dead = temporary_name("note").replace(f"-{os.getpid()}-", "-4190001-")
    assert is_stale(dead)
    (tmp_path / "boot").write_text("00000000-0000-0000-0000-000000000000\n")
    monkeypatch.setattr(temporaries, "_BOOT", str(tmp_path / "boot"))
    assert not is_stale(dead)
