"""Kills processes while they write, and looks at what they leave."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from pera_lightning.errors import PeraError
from tests.hostile.kills.places import ABSENT, Place
from tests.hostile.outcomes import describe

OLD, NEW = "old state", "new state"
MIXED, LEFT, STUCK, TOUCHED, FOREIGN = (
    "mixed or unreadable",
    "temporaries left",
    "next write failed",
    "files touched",
    "other exception",
)
STATES = (OLD, NEW, MIXED, LEFT, STUCK, TOUCHED, FOREIGN)
FINE = (OLD, NEW)
OTHERS = ("notes.txt",)
"""Files of somebody else within the folder."""
_BESIDE = "beside.txt"
_GOLDEN = (5**0.5 - 1) / 2
_WRITES = {
    *("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.link", "os.symlink", "os.truncate"),
    *("shutil.rmtree", "shutil.move", "shutil.copyfile", "os.listdir", "os.scandir", "ctypes.dlsym"),
}


@dataclass(frozen=True)
class Known:
    """A place uninterrupted.

    Attributes:
        states: Hash of what state 0 and state 1 compute.
        files: Names in the folder, in both states.
        events: How many calls of the system a write makes that change files, or that stand between such.
        largest: Bytes of the largest file.
        seconds: Time of a write.
    """

    states: tuple[str, str]
    files: tuple[frozenset[str], frozenset[str]]
    events: int
    largest: int
    seconds: float


class Killer:
    """Writes, kills and looks.

    Args:
        places: By name.
        folder: To work in.
        forked: Runs something in a copy of this process, and returns what it said.
    """

    def __init__(self, places: dict[str, Place], folder: Path, forked: Callable[..., list[dict[str, Any]]]) -> None:
        self._places, self._folder, self.forked = places, folder, forked
        self._known: dict[str, Known] = {}

    def run(self, name: str, seed: int, index: int) -> dict[str, Any]:
        """One kill."""
        place, known, given = self.know(name)
        random = Random(f"{name} {seed} {index}")
        work = self._folder / "kill"
        out = work / "there/out"
        with_notes = random.random() < 0.4
        self._lay_out(place, work, with_notes)
        how, value = _draw(random, known, index)
        said = _killed(place, out, given, how, value)
        reads = []
        for line in self.forked(lambda report: _look_after(place, known, out, given, with_notes, report)):
            reads.append((line["read"], line["outcome"], line["words"]))
        if said and said != "PeraError":
            reads.append(("a full disk", FOREIGN, said))
        return {"kind": name, "seed": seed, "index": index, "mutation": f"{how} {value}", "reads": reads}

    def know(self, name: str) -> tuple[Place, Known, Path]:
        """A place, what it is uninterrupted, and the folder with what its `write` needs."""
        place = self._places[name]
        return place, self._known.get(name) or self._look(place), self._given(place)

    def _given(self, place: Place) -> Path:
        return self._folder / "prepared" / place.name.replace(" ", "-")

    def _lay_out(self, place: Place, work: Path, with_notes: bool) -> None:
        shutil.rmtree(work, ignore_errors=True)
        (work / "there").mkdir(parents=True)
        (work / "there" / _BESIDE).write_text("Mine.\n")
        if place.over:
            shutil.copytree(self._given(place) / "state0/out", work / "there/out")
        if with_notes and place.over:
            (work / "there/out" / OTHERS[0]).write_text("Mine too.\n")

    def _look(self, place: Place) -> Known:
        given = self._given(place)
        given.mkdir(parents=True)
        place.warm()
        lines = self.forked(lambda report: _measure(place, given, report), limited=False)
        if [line["read"] for line in lines] != ["measured"]:
            raise RuntimeError(f"{place.name} was not prepared: {lines}")
        first, second, events, largest, seconds = lines[0]["words"].split()
        files = tuple(frozenset(os.listdir(given / f"state{which}/out")) for which in (0, 1))
        known = Known((first, second), (files[0], files[1]), int(events), int(largest), float(seconds))
        self._known[place.name] = known
        return known


def _measure(place: Place, given: Path, report: Callable[[str, str, str], None]) -> None:
    place.prepare(given)
    states, seconds = [], 0.0
    for which in (0, 1):
        out = given / f"state{which}/out"
        out.parent.mkdir()
        started = time.monotonic()
        place.write(out, which, given)
        seconds = time.monotonic() - started
        states.append(place.read(out))
    if states[0] == states[1]:
        raise RuntimeError(f"the states of {place.name} cannot be told from each other")
    largest = max(path.stat().st_size for path in (given / "state1").rglob("*") if path.is_file())
    again = given / "again/out"
    again.parent.mkdir()
    if place.over:
        shutil.copytree(given / "state0/out", again)
    count = _count_events(lambda number: None)
    place.write(again, 1, given)
    report("measured", "", f"{states[0]} {states[1]} {count()} {largest} {seconds}")


def _draw(random: Random, known: Known, index: int) -> tuple[str, float]:
    """How a write is ended: before each call in turn, within a file, at any time; or there is no room."""
    how = ("call", "call", "bytes", "time", "room")[index % 5]
    if how == "call":
        # However few kills there are, they are spread evenly over all calls, to those behind the exchange of folders.
        return how, int((index // 5 * 2 + index % 5) * _GOLDEN % 1 * known.events)
    if how == "time":
        return how, random.random() * known.seconds * 1.2
    return how, random.randrange(known.largest)


def _killed(place: Place, out: Path, given: Path, how: str, value: float) -> str:
    """What a writer says that is not killed: nothing, or the kind of error that it ends with."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _write_and_die(place, out, given, how, value, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        pipe.readline()
        if how == "time":
            time.sleep(value)
            os.kill(pid, signal.SIGKILL)
        said = pipe.read().decode()
    os.waitpid(pid, 0)
    return said


def _write_and_die(place: Place, out: Path, given: Path, how: str, value: float, writer: int) -> None:
    try:
        os.write(writer, b"ready\n")
        if how == "call":
            _count_events(lambda number: os.kill(os.getpid(), signal.SIGKILL) if number > value else None)
        elif how in ("bytes", "room"):
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL if how == "bytes" else signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(value), int(value)))
        place.write(out, 1, given)
    except PeraError:
        os.write(writer, b"PeraError")
    except BaseException as error:
        os.write(writer, describe(error).encode()[:2000])
    finally:
        os._exit(0)


def _count_events(look: Callable[[int], None]) -> Callable[[], int]:
    """Call `look` with the number of every call of the system that is audited and has to do with writing."""
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in _WRITES:
            count += 1
            look(count)

    sys.addaudithook(hook)
    return lambda: count


def _look_after(
    place: Place, known: Known, out: Path, given: Path, with_notes: bool, report: Callable[[str, str, str], None]
) -> None:
    state, words = _state(place, known, out)
    report("after the kill", state, words)
    try:
        place.write(out, 1, given)
        state, words = _state(place, known, out)
        if state != NEW:
            report("the next write", STUCK, f"{state} {words}")
    except BaseException as error:
        report("the next write", STUCK, describe(error))
        return
    others = {OTHERS[0]} if with_notes and place.over else set()
    found = set(os.listdir(out)) - known.files[1] - others
    beside = set(os.listdir(out.parent)) - {"out", _BESIDE, "run"}
    if found or beside:
        report("the next write", LEFT, f"{sorted(found)} in the folder, {sorted(beside)} beside it")
    texts = [(out.parent / _BESIDE, "Mine.\n"), *((out / name, "Mine too.\n") for name in others)]
    if any(not path.is_file() or path.read_text() != text for path, text in texts):
        report("the next write", TOUCHED, f"one of {[str(path) for path, _ in texts]}")


def _state(place: Place, known: Known, out: Path) -> tuple[str, str]:
    try:
        found = place.read(out) if out.exists() else ABSENT
    except PeraError as error:
        # Where there was nothing, there may be nothing yet.
        return (MIXED if place.over else OLD), describe(error)
    except FileNotFoundError as error:
        return (MIXED if place.over or any(out.iterdir()) else OLD), describe(error)
    except BaseException as error:
        return MIXED, describe(error)
    if found == known.states[1]:
        return NEW, ""
    old = known.states[0] if place.over else ABSENT
    return (OLD, "") if found == old else (MIXED, f"{sorted(os.listdir(out))}")
