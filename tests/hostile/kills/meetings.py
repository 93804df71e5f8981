"""A reader beside a writer, and two writers at once, of the same folder."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pera_lightning.errors import PeraError
from tests.hostile.kills.killing import FOREIGN, LEFT, MIXED, NEW, OLD, Killer, Known
from tests.hostile.kills.places import Place
from tests.hostile.outcomes import describe

READER = "a reader beside a constant writer"
WRITERS = "two writers at once"
MEETINGS = {
    f"{READER}: save_adapter": (READER, "save_adapter over an adapter"),
    f"{WRITERS}: save_adapter": (WRITERS, "save_adapter over an adapter"),
    f"{WRITERS}: export_lora": (WRITERS, "export_lora over an export"),
    f"{WRITERS}: evaluate": (WRITERS, "evaluate"),
}
"""Name -> what meets, and where."""
_TIMES = 5
"""How often each of two writers writes, or a reader reads."""


class Meetings:
    """Lets processes meet.

    Args:
        killer: Knows the places.
        folder: To work in.
    """

    def __init__(self, killer: Killer, folder: Path) -> None:
        self._killer, self._folder = killer, folder

    def run(self, name: str, seed: int, index: int) -> dict[str, Any]:
        """One meeting."""
        what, where = MEETINGS[name]
        place, known, given = self._killer.know(where)
        out = self._folder / "meeting/out"
        shutil.rmtree(out.parent, ignore_errors=True)
        out.parent.mkdir()
        shutil.copytree(given / f"state{index % 2}/out", out)
        meet = _beside_a_writer if what == READER else _two_writers
        lines = self._killer.forked(lambda report: meet(place, known, out, given, report))
        reads = [(line["read"], line["outcome"], line["words"]) for line in lines]
        return {"kind": name, "seed": seed, "index": index, "mutation": what, "reads": reads}


def _started(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid


def _beside_a_writer(place: Place, known: Known, out: Path, given: Path, report: Callable[..., None]) -> None:
    def write_on() -> None:
        for number in range(10_000):
            place.write(out, number % 2, given)

    writer = _started(write_on)
    try:
        for _ in range(_TIMES):
            # Not only at the same point of a write.
            time.sleep(known.seconds / 3)
            report("a read", *_seen(place, known, out))
    finally:
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)


def _two_writers(place: Place, known: Known, out: Path, given: Path, report: Callable[..., None]) -> None:
    def write(which: int) -> None:
        for _ in range(_TIMES):
            try:
                place.write(out, which, given)
            except PeraError:
                # The second may be refused.
                continue
            except BaseException as error:
                report("a writer", FOREIGN, describe(error))

    writers = [_started(lambda which=which: write(which)) for which in (0, 1)]
    for writer in writers:
        os.waitpid(writer, 0)
    report("afterwards", *_seen(place, known, out))
    place.write(out, 1, given)
    found = set(os.listdir(out)) - known.files[1]
    beside = set(os.listdir(out.parent)) - {"out"}
    if found or beside:
        report("the next write", LEFT, f"{sorted(found)} in the folder, {sorted(beside)} beside it")


def _seen(place: Place, known: Known, out: Path) -> tuple[str, str]:
    try:
        found = place.read(out)
    except BaseException as error:
        return MIXED, describe(error)
    if found in known.states:
        return (OLD, NEW)[known.states.index(found)], ""
    return MIXED, "outputs of neither state"
