"""Start a run of two workers, kill one, wait until all have ended, and go on from the last checkpoint (on Linux)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.strategies.hosts import two_hosts
from benchmarks.strategies.torchrun import on_hosts, on_one_host

ROOT = Path(__file__).parents[2]
PROGRAM = "benchmarks.killed_worker.training"
WHOLE = "whole"
GRACE = 40.0
"""Seconds beyond the timeout after which what is left counts as an orphan; torchrun alone may take 30."""
_MARK = "PERA_KILLED_WORKER_RUN"
_PER_PROCESS = ("MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE")


@dataclass(frozen=True)
class Killing:
    """Which worker is killed, in a run started how.

    Attributes:
        launcher: "lightning" (`strategy="ddp"` starts the other process), "torchrun", or "two hosts" (torchrun on
            each; the victim's host loses its power).
        victim: Rank.
    """

    launcher: str
    victim: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.launcher.replace(' ', '-')}-{self.victim}"


@dataclass(frozen=True)
class Ending:
    """How the run ended.

    Attributes:
        seconds: From the kill until every process had ended.
        orphans: How many had not, and were ended then.
        messages: What PeraCallback said on the ranks that were left.
    """

    seconds: float
    orphans: int
    messages: list[str]


@dataclass(frozen=True)
class Resumed:
    """A run that went on, beside the one that was never interrupted.

    Attributes:
        first: Epoch and batch it went on with.
        loss: Mean of the ranks' losses of its last step.
        whole_loss: Of the uninterrupted run.
        bitwise: Whether every later loss of every rank and the adapter are equal to the last bit.
    """

    first: tuple[int, int]
    loss: float
    whole_loss: float
    bitwise: bool


def kill(killing: Killing, folder: Path, timeout: float) -> Ending:
    """Kill a worker in the middle of a run and wait for the others.

    Args:
        killing: Which.
        folder: The run is kept in a folder within.
        timeout: Seconds of the process group.
    """
    run = folder / killing.name
    run.mkdir(parents=True)
    options = [str(folder), killing.name, "--victim", str(killing.victim), "--timeout", str(timeout)]
    with _started(killing, options, run / "log") as (launchers, strike):
        victim = _wait_for_victim(run, launchers)
        start = time.monotonic()
        strike(victim)
        left = _wait_for_end(run, start + timeout + GRACE)
        seconds = time.monotonic() - start
    lines = (run / "log").read_text(encoding="utf-8").splitlines()
    messages = [line[line.index("PERA: rank") :] for line in lines if "PERA: rank" in line]
    return Ending(seconds, len(left), messages)


def resume(folder: Path, killings: Sequence[Killing]) -> list[Resumed]:
    """Run the uninterrupted run and go on with the killed ones, all in the same two processes.

    Args:
        folder: Where `kill` kept them.
        killings: Which.
    """
    names = [WHOLE, *(killing.name for killing in killings)]
    command = [sys.executable, "-m", PROGRAM, str(folder), *names, "--devices", "2"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return [compare(folder / WHOLE, folder / name) for name in names[1:]]


def compare(whole: Path, rest: Path) -> Resumed:
    """Compare a run that went on with the uninterrupted one, by what their two processes wrote."""
    wholes, rests = ([read(run, rank) for rank in range(2)] for run in (whole, rest))
    steps = rests[0]["losses"].keys()
    bitwise = all(same_rest(before, after) for before, after in zip(wholes, rests, strict=True))
    loss, whole_loss = (sum(found["losses"][max(steps)].item() for found in ranks) / 2 for ranks in (rests, wholes))
    return Resumed(min(steps), loss, whole_loss, bitwise)


def read(run: Path, rank: int) -> dict[str, Any]:
    """What a process wrote: "losses", "adapter", "written"."""
    return torch.load(run / f"{rank}.pt", weights_only=True)


def same_rest(whole: dict[str, Any], rest: dict[str, Any]) -> bool:
    """Whether a process that went on has all losses that follow its first, and the adapter, to the last bit."""
    first = min(rest["losses"])
    later = {step: loss for step, loss in whole["losses"].items() if step >= first}
    return all(
        ours.keys() == theirs.keys() and all(torch.equal(value, theirs[key]) for key, value in ours.items())
        for ours, theirs in ((later, rest["losses"]), (whole["adapter"], rest["adapter"]))
    )


def environment() -> dict[str, str]:
    """The variables of this process without those of an earlier run, and one thread for each process."""
    return {**{key: value for key, value in os.environ.items() if key not in _PER_PROCESS}, "OMP_NUM_THREADS": "1"}


@contextlib.contextmanager
def _started(
    killing: Killing, options: list[str], log: Path
) -> Iterator[tuple[list[subprocess.Popen[bytes]], Callable[[int], None]]]:
    """Start the run; yields the processes started here and what is done to the victim."""
    program = [PROGRAM, *options]
    base = {**environment(), _MARK: str(log.parent)}
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(log.open("ab"))
        settings: dict[str, Any] = {"cwd": ROOT, "stdout": output, "stderr": subprocess.STDOUT}
        if killing.launcher == "two hosts":
            hosts = stack.enter_context(two_hosts())
            commands = on_hosts(hosts, [*program, "--nodes", "2"])
            variables = [{**base, **host.variables()} for host in hosts]
            strike = _lose_power(hosts[killing.victim].lose_power)
        else:
            by_hand = [sys.executable, "-m", *program]
            command = by_hand if killing.launcher == "lightning" else on_one_host(program, 2)
            commands, variables, strike = [[*command, "--devices", "2"]], [base], _send_kill
        launchers = [
            subprocess.Popen(command, env=env, **settings) for command, env in zip(commands, variables, strict=True)
        ]
        try:
            yield launchers, strike
        finally:
            for process in _processes(log.parent):
                _send_kill(process)
            for launcher in launchers:
                launcher.wait()


def _send_kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def _lose_power(lose_power: Callable[[], None]) -> Callable[[int], None]:
    return lambda victim: lose_power()


def _wait_for_victim(run: Path, launchers: list[subprocess.Popen[bytes]]) -> int:
    waiting, deadline = run / "waiting", time.monotonic() + 120
    while not (waiting.exists() and waiting.read_text(encoding="utf-8")):
        if time.monotonic() > deadline or any(launcher.poll() is not None for launcher in launchers):
            raise RuntimeError("The run did not start:\n" + (run / "log").read_text(encoding="utf-8"))
        time.sleep(0.05)
    # Meanwhile the other one reaches the exchange of gradients and waits there.
    time.sleep(0.5)
    return int(waiting.read_text(encoding="utf-8"))


def _wait_for_end(run: Path, deadline: float) -> list[int]:
    """Wait until all processes have ended; returns those that have not by then."""
    while (left := _processes(run)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _processes(run: Path) -> list[int]:
    """All processes of the run, whoever started them: they have inherited its mark."""
    mark = f"{_MARK}={run}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        # Ended meanwhile, or another user's. Of one that has ended and waits for its parent to ask, nothing is read.
        with contextlib.suppress(OSError):
            if mark in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found
