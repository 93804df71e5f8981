"""Writers of folders that are killed at every call, and several at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="folders change places on Linux")


def run_script(script: str, folder: Path) -> str:
    """Run something that forks in a process of its own, without threads; what it prints."""
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


CRASHES = """
import os, shutil, sys
from pathlib import Path
from tests.support.crashes import crashes
from tests.support.folder_kinds import names, read, write
from pera_lightning.storage import whole_folder

root = Path(sys.argv[1])

def refuse(one, other):
    raise OSError(22, "cannot")

def try_all(name, prepare, allowed, others=(), parts=0):
    count, seen = 0, set()
    def folder():
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name).mkdir()
        prepare(root / name)
        return root / name
    def act():
        write(inside, "new", parts=parts)
    inside = root / name / "note"
    place = folder()
    for number in crashes(act):
        count += 1
        seen.add(read(inside))
        assert read(inside) in allowed, (name, number, names(place))
        write(inside, "next")
        assert read(inside) == "next", (name, number)
        expected = sorted(["note", "note/note.json", "note/text", *others])
        assert names(place) == expected, (name, number, names(place))
        folder()
    assert read(inside) == "new"
    print(name, count, *sorted(map(str, seen)))

def ours(folder):
    write(folder / "note", "old", parts=2)

def mixed(folder):
    ours(folder)
    (folder / "note/mine").touch()

try_all("new", lambda folder: None, {None, "new"}, parts=1)
try_all("empty", lambda folder: (folder / "note").mkdir(), {None, "new"})
try_all("ours", ours, {"old", "new"}, parts=1)
try_all("mixed", mixed, {"old", "new"}, ["note/mine"], parts=1)
whole_folder.exchange = refuse
try_all("without", ours, {"old", "new"}, parts=1)
"""


@linux
def test_kills_at_every_call_that_changes_files(tmp_path: Path) -> None:
    printed = run_script(CRASHES, tmp_path)
    counts = {name: (int(count), *seen) for name, count, *seen in (line.split() for line in printed.splitlines())}
    # Each place is met before and after the step that counts.
    assert {name: found[1:] for name, found in counts.items()} == {
        "new": ("None", "new"), "empty": ("None", "new"), "ours": ("new", "old"), "mixed": ("new", "old"),
        "without": ("new", "old"),
    }  # fmt: skip
    assert all(found[0] >= 8 for found in counts.values())


WRITERS = """
import os, sys, traceback
from pathlib import Path
from tests.support.folder_kinds import names, read, write

def try_all(root, mine):
    write(root / "note", "first")
    for name in mine:
        (root / "note" / name).touch()
    children = []
    for writer in "abc":
        child = os.fork()
        if not child:
            code = 1
            try:
                for number in range(60):
                    write(root / "note", f"{writer} {number}", parts=2)
                code = 0
            except Exception:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    assert not any(os.waitpid(child, 0)[1] for child in children)
    assert read(root / "note").endswith(" 59")
    assert names(root) == ["note", *sorted(f"note/{name}" for name in ("note.json", "part-0", "part-1", "text", *mine))]

try_all(Path(sys.argv[1], "whole"), [])
try_all(Path(sys.argv[1], "by file"), ["mine"])
"""


def test_several_writers_at_once(tmp_path: Path) -> None:
    run_script(WRITERS, tmp_path)
