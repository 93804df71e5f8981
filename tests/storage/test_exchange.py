from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pera_lightning.storage.exchange import somebody_stands_in
from tests.support.folder_kinds import read, write

SLEEP = "import sys; print('here', flush=True); sys.stdin.read()"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells where processes stand")
@pytest.mark.parametrize("empty", [False, True])
def test_a_folder_that_another_process_stands_in_stays(tmp_path: Path, empty: bool) -> None:
    if empty:
        (tmp_path / "note").mkdir()
    else:
        write(tmp_path / "note", "one")
    assert not somebody_stands_in(tmp_path / "note")
    before = (tmp_path / "note").stat().st_ino
    process = [sys.executable, "-c", SLEEP]
    with subprocess.Popen(
        process, cwd=tmp_path / "note", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as shell:
        assert shell.stdout is not None
        assert shell.stdout.readline() == "here\n"
        assert somebody_stands_in(tmp_path / "note")
        assert somebody_stands_in(tmp_path)
        assert not somebody_stands_in(tmp_path / "no")
        write(tmp_path / "note", "two")
        shell.communicate("")
    assert (tmp_path / "note").stat().st_ino == before
    assert read(tmp_path / "note") == "two"
