"""One worker killed, two hosts joined by a virtual cable, and runs that go on from one to the other."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.killed_worker.killing import PROGRAM, WHOLE, Ending, Killing, environment, kill, read, same_rest
from benchmarks.killed_worker.training import GLOBAL_BATCH, KILLED_AT, PLAIN, ROWS, Task, train
from benchmarks.strategies.hosts import refusal, two_hosts
from benchmarks.strategies.torchrun import on_hosts
from tests.conftest import NO_HOSTS, ROOT

pytestmark = [
    # Of torchdata about torch.
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
    pytest.mark.skipif(refusal() is not None, reason=NO_HOSTS),
]

TIMEOUT = 60
# Rank 1 is left: nothing but itself ends it.
KILLING = Killing("lightning", 0)
LAST_BATCH = ROWS // GLOBAL_BATCH - 1


@dataclass(frozen=True)
class Runs:
    """A killed run of one host, and what two hosts made of it and of runs of their own."""

    folder: Path
    ending: Ending
    killed: dict[str, Any]

    def ranks(self, name: str) -> list[dict[str, Any]]:
        return [read(self.folder / name, rank) for rank in range(2)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    # All in one: every process takes eight seconds to import.
    folder = tmp_path_factory.mktemp("runs")
    ending = kill(KILLING, folder, TIMEOUT)
    killed = read(folder / KILLING.name, rank=1)
    shutil.copytree(folder / KILLING.name, folder / "killed")
    names = [WHOLE, f"again:{WHOLE}", "killed", PLAIN]
    with two_hosts() as hosts:
        program = [PROGRAM, str(folder), *names, "--nodes", "2", "--timeout", str(TIMEOUT)]
        processes = [
            subprocess.Popen(
                command,
                cwd=ROOT,
                env={**environment(), **host.variables()},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for host, command in zip(hosts, on_hosts(hosts, program), strict=True)
        ]
        outputs = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    return Runs(folder, ending, killed)


def test_the_worker_that_is_left_says_what_happened_and_ends(runs: Runs) -> None:
    assert runs.ending.orphans == 0
    # At once, not after the timeout.
    assert runs.ending.seconds < TIMEOUT / 2
    (message,) = runs.ending.messages
    assert message.startswith("PERA: rank 1 of 2 stops, because another process has ended")
    assert f"fit(ckpt_path='{runs.folder / KILLING.name / 'last.ckpt'}')" in message
    # The exception itself is not hidden.
    assert "Connection closed by peer" in (runs.folder / KILLING.name / "log").read_text(encoding="utf-8")


def test_two_hosts_go_on_with_the_killed_run_as_if_nothing_had_been(runs: Runs) -> None:
    for whole, rest in zip(runs.ranks(WHOLE), runs.ranks("killed"), strict=True):
        # Every second step is saved: it goes on with the one before the one in which the worker was killed.
        assert min(rest["losses"]) == (KILLED_AT[0], KILLED_AT[1] - 1)
        assert same_rest(whole, rest)


def test_two_hosts_compute_what_one_does(runs: Runs) -> None:
    whole = runs.ranks(WHOLE)[1]
    assert runs.killed["losses"].keys() == {step for step in whole["losses"] if step <= KILLED_AT}
    assert all(torch.equal(whole["losses"][step], loss) for step, loss in runs.killed["losses"].items())


def test_two_hosts_compute_what_one_process_does(runs: Runs, tmp_path: Path) -> None:
    alone = Task(dropout=0.0)
    train(tmp_path, alone, devices=1)
    ranks = runs.ranks(PLAIN)
    for step, loss in alone.losses.items():
        torch.testing.assert_close((ranks[0]["losses"][step] + ranks[1]["losses"][step]) / 2, loss)
    for name, value in read(tmp_path, 0)["adapter"].items():
        torch.testing.assert_close(ranks[0]["adapter"][name], value)
        assert torch.equal(ranks[0]["adapter"][name], ranks[1]["adapter"][name])


def test_only_the_first_host_writes_and_both_go_on(runs: Runs) -> None:
    first, second = runs.ranks(WHOLE)
    assert {"last.ckpt", "adapter_config.json"} <= set(first["written"])
    assert second["written"] == []
    for whole, rest in zip(runs.ranks(WHOLE), runs.ranks("again"), strict=True):
        assert min(rest["losses"]) == (1, 2)
        assert same_rest(whole, rest)


def test_a_host_without_power_is_not_heard_of_again() -> None:
    listener = "import socket; s = socket.create_server(('', 5000)); print('up', flush=True); s.accept(); s.accept()"
    caller = "import socket, sys; socket.create_connection((sys.argv[1], 5000), 1)"
    with two_hosts() as (first, second), two_hosts():
        python = ["python3", "-c"]
        process = subprocess.Popen(second.command([*python, listener]), stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        call = first.command([*python, caller, second.address])
        assert subprocess.run(call, check=False).returncode == 0
        second.lose_power()
        assert process.wait(10) == -9
        lost = subprocess.run(call, capture_output=True, text=True, check=False)
        assert "timed out" in lost.stderr or "No route" in lost.stderr
        process.stdout.close()
    names = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert first.name not in names
    assert second.name not in names
