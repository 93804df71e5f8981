"""A warm process that forks for each case: `python -m tests.hostile.worker FOLDER`.

Reads requests as lines of JSON (`kind`, `seed`, `index`) and answers each with a line: what was done to the input, and
the outcome of every read. The libraries are imported once, and no thread is started, before it forks.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import resource
import select
import shutil
import signal
import stat
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tests.hostile.kinds import Case, Kind
from tests.hostile.outcomes import HANG, MEMORY, OTHER, RAN, RIGHT, TOUCHED, describe, of_error

CPU_SECONDS = 5
"""Of one read; more is a hang."""
WAITING_SECONDS = 5
"""Of one read that wants no processor: it waits for something that does not come."""
BASE_BYTES = 192 << 20
"""Peak memory that a read may take beside twice the model: libraries load code and tables when they are first used."""
_ROOM = 6 << 30
"""Address space beside what the process has: far more than is allowed, so that allocations show before they fail."""

Report = Callable[[str, str, str], None]
"""Tells the parent: name of the read, outcome, words."""


class Forge:
    """Makes cases and runs them.

    Args:
        kinds: By name.
        folder: To work in.
    """

    def __init__(self, kinds: dict[str, Kind], folder: Path) -> None:
        self._kinds, self._folder = kinds, folder

    def run(self, name: str, seed: int, index: int) -> dict[str, Any]:
        """One case; of a negative index good input, which every reader reads."""
        kind = self._kinds[name]
        good = self._good(kind)
        place = self._folder / "case"
        shutil.rmtree(place, ignore_errors=True)
        random = Random(f"{name} {seed} {index}")
        variants = sorted(path.name for path in good.iterdir())
        variant = random.choice(variants) if index >= 0 else variants[index % len(variants)]
        shutil.copytree(good / variant, place / "given")
        for folder in ("out", "theirs"):
            (place / folder).mkdir()
        (place / "theirs/README.md").write_text("Mine.\n")
        case = Case(place / "given", good / variant, place / "out", variant, random, place / "ran")
        lines = forked(lambda report: _child(kind, case, report, spoil=index >= 0))
        reads = [(line["read"], line["outcome"], line["words"]) for line in lines if line["read"] != "mutation"]
        if case.canary.exists():
            reads.append(("afterwards", RAN, "the canary file is there"))
        if (place / "theirs/README.md").read_text() != "Mine.\n" or len(list((place / "theirs").iterdir())) != 1:
            reads.append(("afterwards", TOUCHED, "a file beside the input"))
        done = next((line["words"] for line in lines if line["read"] == "mutation"), "(the mutation failed)")
        return {"kind": name, "seed": seed, "index": index, "mutation": f"{variant}: {done}", "reads": reads}

    def _good(self, kind: Kind) -> Path:
        folder = self._folder / "good" / kind.name
        if not folder.is_dir():
            unfinished = folder.with_name(f"{kind.name}.unfinished")
            unfinished.mkdir(parents=True)
            kind.warm()
            gc.collect()
            # What is here stays: the copies of this process need not look at it, and its pages stay shared.
            gc.freeze()
            [line] = forked(lambda report: _prepare(kind, unfinished, report), limited=False)
            if line["outcome"] != RIGHT:
                raise RuntimeError(f"{kind.name} was not prepared: {line}")
            unfinished.rename(folder)
        return folder


def _prepare(kind: Kind, folder: Path, report: Report) -> None:
    try:
        kind.prepare(folder)
    except BaseException:
        report("prepare", OTHER, traceback.format_exc())
    else:
        report("prepare", RIGHT, "")


def _child(kind: Kind, case: Case, report: Report, *, spoil: bool) -> None:
    report("mutation", RIGHT, kind.mutate(case) if spoil else "nothing")
    before = contents(case.given)
    names = sorted(kind.reads)
    if spoil and kind.per_case is not None:
        names = case.random.sample(names, min(kind.per_case, len(names)))
    for name in names:
        shutil.rmtree(case.out)
        case.out.mkdir()
        _read(kind, case, name, report)
    if contents(case.given) != before:
        report("afterwards", TOUCHED, "the input itself")


def _read(kind: Kind, case: Case, name: str, report: Report) -> None:
    gc.collect()
    held = _reset_peak()
    _limit()
    try:
        kind.reads[name](case)
    # Any, also what is no Exception: this is what is looked for.
    except BaseException as error:
        outcome, words = of_error(error), describe(error)
    else:
        outcome, words = RIGHT, ""
    grown = _peak() - held
    if grown > BASE_BYTES + 2 * kind.model_bytes:
        outcome, words = MEMORY, f"{grown >> 20} MB ({outcome} {words})"
    report(name, outcome, words)


def _limit() -> None:
    """For the read that follows: processor time, beyond which the kernel ends this process, and address space."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + CPU_SECONDS + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + _ROOM, resource.RLIM_INFINITY))


def _reset_peak() -> int:
    """Bytes that this process holds; its peak counts from now on."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:"))


def contents(folder: Path) -> dict[str, str]:
    """A hash of every file, and what else there is."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        regular = stat.S_ISREG(mode)
        found[str(path.relative_to(folder))] = (
            hashlib.sha256(path.read_bytes()).hexdigest() if regular else str(stat.S_IFMT(mode))
        )
    return found


def forked(work: Callable[[Report], None], *, limited: bool = True) -> list[dict[str, str]]:
    """Run something in a copy of this process; what it reported, and how it ended if it did not by itself."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _as_child(work, writer)
    os.close(writer)
    lines, waited = _collect(reader, pid, WAITING_SECONDS if limited else None)
    os.close(reader)
    _, status = os.waitpid(pid, 0)
    if waited or os.WIFSIGNALED(status):
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        outcome = HANG if waited or number == signal.SIGXCPU else OTHER
        words = f"after {lines[-1]['read'] if lines else 'nothing'}: " + (
            f"no answer in {WAITING_SECONDS} s" if waited else f"ended by {signal.Signals(number).name}"
        )
        lines.append({"read": "next", "outcome": outcome, "words": words})
    return lines


def _as_child(work: Callable[[Report], None], writer: int) -> None:
    os.setpgid(0, 0)

    def report(read: str, outcome: str, words: str) -> None:
        line = json.dumps({"read": read, "outcome": outcome, "words": words[:3000]}) + "\n"
        os.write(writer, line.encode())

    try:
        work(report)
    except BaseException:
        report("mutation", OTHER, traceback.format_exc()[-3000:])
    finally:
        # Without what runs at the end of an interpreter: the parent's buffers and temporary folders are its own.
        os._exit(0)


def _collect(reader: int, pid: int, patience: float | None) -> tuple[list[dict[str, str]], bool]:
    """Lines of a child until it ends, and whether it was ended because it had nothing to say for too long."""
    text = b""
    while True:
        ready, _, _ = select.select([reader], [], [], patience)
        if not ready:
            if not _waits(pid):
                continue
            os.kill(pid, signal.SIGKILL)
            return _lines(text), True
        block = os.read(reader, 1 << 16)
        if not block:
            return _lines(text), False
        text += block


def _waits(pid: int) -> bool:
    """Whether neither a process nor what it has started wants a processor; what does is slow on a busy machine."""
    for _ in range(10):
        if any(state != "S" for process in _family(pid) for state in _threads(process)):
            return False
        time.sleep(0.1)
    return True


def _family(pid: int) -> set[int]:
    """A process and its descendants."""
    parents = {int(path.name): _fields(path)[1] for path in Path("/proc").iterdir() if path.name.isdigit()}
    family = {pid}
    while more := {child for child, parent in parents.items() if parent.isdigit() and int(parent) in family} - family:
        family |= more
    return family


def _threads(pid: int) -> list[str]:
    """States of the threads of a process: "S" waits."""
    folder = Path(f"/proc/{pid}/task")
    return [_fields(path)[0] for path in folder.iterdir()] if folder.is_dir() else []


def _fields(path: Path) -> list[str]:
    """State and parent of a process or thread."""
    try:
        return (path / "stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        # It has just ended.
        return ["S", "0"]


def _lines(text: bytes) -> list[dict[str, str]]:
    return [json.loads(line) for line in text.decode().splitlines()]


def serve(folder: Path) -> None:
    """Answer requests until there are no more. What libraries print goes to a log."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    log = (folder / "log.txt").open("w")
    for stream in (1, 2):
        os.dup2(log.fileno(), stream)
    from tests.hostile.kills.killing import Killer
    from tests.hostile.kills.meetings import MEETINGS, Meetings
    from tests.hostile.kills.places import PLACES
    from tests.hostile.readers.registry import KINDS

    forge = Forge(KINDS, folder)
    killer = Killer(PLACES, folder, forked)
    runs = dict.fromkeys(KINDS, forge.run) | dict.fromkeys(PLACES, killer.run)
    runs |= dict.fromkeys(MEETINGS, Meetings(killer, folder).run)
    for line in sys.stdin:
        request = json.loads(line)
        started = time.monotonic()
        try:
            answer = runs[request["kind"]](request["kind"], request["seed"], request["index"])
        except Exception:
            answer = {**request, "mutation": "", "reads": [("the harness", OTHER, traceback.format_exc())]}
        answer["seconds"] = time.monotonic() - started
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
