"""An export is killed at each of its calls that change files: the earlier one is there, or the new one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pera_lightning import save_adapter
from tests.support.base_folders import save_base_and_adapter
from tests.support.exports import adapted
from tests.support.models import tiny_llama

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the processes are forked")

CRASHES = """
import shutil, sys
from pathlib import Path
from pera_lightning import export_lora
from pera_lightning.storage.journal import settle
from pera_lightning.export.place import export_kind
from pera_lightning.export.merged.merged_model import export_merged
from tests.support.crashes import crashes

root, adapter = Path(sys.argv[1]), Path(sys.argv[2])

def lora(small):
    return lambda: export_lora(adapter, root / "place/out", 3 if small else None)

def merged(small):
    return lambda: export_merged(adapter, root / "place/out", dtype="bfloat16" if small else None, compare=False)

def state(form):
    out = root / "place/out"
    settle(out, export_kind(form))
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} if out.is_dir() else {}

def try_all(name, form, mine=()):
    def prepare():
        shutil.rmtree(root / "place", ignore_errors=True)
        (root / "place").mkdir()
        if name == "new":
            return
        form(True)()
        for file in mine:
            (root / "place/out" / file).write_text("mine")
    prepare()
    old = state(kind)
    form(False)()
    new = state(kind)
    assert old != new
    prepare()
    count, seen = 0, []
    for number in crashes(form(False)):
        count += 1
        assert state(kind) in (old, new), (name, number)
        seen.append(state(kind) == new)
        form(False)()
        assert state(kind) == new, (name, number)
        assert [path.name for path in (root / "place").iterdir()] == ["out"], (name, number)
        prepare()
    print(name, count, True in seen, False in seen)

kind = sys.argv[3]
form = {"peft": lora, "merged": merged}[kind]
try_all("new", form)
try_all("over", form)
try_all("beside", form, ["notes.txt"])
"""


@pytest.mark.parametrize("form", ["peft", "merged"])
def test_kills_at_every_call_that_changes_files(tmp_path: Path, form: str) -> None:
    if form == "peft":
        save_adapter(adapted(), tmp_path / "adapter")
    else:
        save_base_and_adapter(tiny_llama(), tmp_path)
    words = [sys.executable, "-c", CRASHES, tmp_path / "work", tmp_path / "adapter", form]
    (tmp_path / "work").mkdir()
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [name for name, *_ in rows] == ["new", "over", "beside"]
    # Each is met before and after the step that counts.
    assert all(int(count) >= 8 and met == ["True", "True"] for _, count, *met in rows), rows
