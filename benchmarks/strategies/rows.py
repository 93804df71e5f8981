"""The rows of the matrix: who starts which processes, and what is read from what they leave behind."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.strategies.hosts import refusal, two_hosts
from benchmarks.strategies.torchrun import on_hosts
from benchmarks.strategies.worker import RUNS

ROOT = Path(__file__).parents[2]
Launcher = Callable[[Sequence[str]], None]
"""Starts the processes of `benchmarks.strategies.worker` with these options, and waits for them."""


def run_script(options: Sequence[str]) -> None:
    """Start the first process; Lightning starts the others."""
    run([sys.executable, "-m", "benchmarks.strategies.worker", *options])


def run_on_two_hosts(options: Sequence[str]) -> None:
    """Start a process on each of two hosts by torchrun."""
    with two_hosts() as hosts, ThreadPoolExecutor() as pool:
        commands = on_hosts(hosts, ["benchmarks.strategies.worker", *options])
        list(pool.map(run, commands, [host.variables() for host in hosts]))


def run(command: Sequence[str], variables: Mapping[str, str] | None = None) -> None:
    """Run a command from the root of the project, with one thread a process; its output is shown if it fails."""
    # A free port for each run: the last one's may not be free yet.
    inherited = {name: value for name, value in os.environ.items() if name not in ("MASTER_PORT", "LOCAL_RANK")}
    done = subprocess.run(
        command,
        cwd=ROOT,
        # As many threads in every row: they decide in which order sums are taken.
        env={**inherited, "OMP_NUM_THREADS": "1", **(variables or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


@dataclass(frozen=True)
class Row:
    """One row: a strategy of the worker, its processes, and who starts them.

    Args:
        name: As in the table.
        strategy: One of the worker's.
        processes: On each host.
        hosts: Number of hosts.
        data_parallel: Processes with data of their own, where that is not all of them.
        launcher: Starts the processes.
    """

    name: str
    strategy: str
    processes: int = 1
    hosts: int = 1
    data_parallel: int | None = None
    launcher: Launcher = field(default=run_script)

    def refusal(self) -> str | None:
        """Why it cannot be run here, or None."""
        return refusal() if self.hosts > 1 else None

    def measure(self, model: Path, data: Path, folder: Path) -> dict[str, Any]:
        """Run it and read what the processes wrote into the (empty) folder."""
        folder.mkdir(parents=True)
        options = {"strategy": self.strategy, "processes": self.processes, "hosts": self.hosts}
        options |= {"model": model, "data": data, "out": folder}
        if self.data_parallel is not None:
            options["data_parallel"] = self.data_parallel
        start = time.perf_counter()
        self.launcher([word for name, value in options.items() for word in (f"--{name}", str(value))])
        seconds = time.perf_counter() - start
        ranks = range(self.processes * self.hosts)
        whole, resumed = ([_read(folder / f"{run}-{rank}.json") for rank in ranks] for run in RUNS)
        losses, again = _mean_losses(whole), _mean_losses(resumed)
        return {
            "strategy": self.name,
            "processes": len(ranks),
            "final_loss": losses[max(losses)],
            "ranks_equal": len({found["adapter"] for found in whole}) == 1,
            "checkpoint_bytes": _bytes(folder / "whole" / "epoch=0.ckpt"),
            "resume_bitwise": [found["adapter"] for found in resumed] == [found["adapter"] for found in whole],
            "resume_difference": max(abs(loss - losses[step]) for step, loss in again.items()),
            "seconds": seconds,
        }


ROWS = [
    Row("single process", "single"),
    Row("ddp x2", "ddp", 2),
    Row("ddp x4", "ddp", 4),
    Row("ddp_spawn x2", "ddp_spawn", 2),
    Row("FSDP2 x2", "fsdp2", 2),
    Row("TP x2", "tensor_parallel", 2, data_parallel=1),
    Row("2 hosts x1", "ddp", 1, hosts=2, launcher=run_on_two_hosts),
]
"""The first one is what the others are compared with."""


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _mean_losses(processes: list[dict[str, Any]]) -> dict[int, float]:
    """Optimizer step -> mean of the processes' losses."""
    columns = [found["losses"] for found in processes]
    return {int(step): statistics.fmean(losses[step] for losses in columns) for step in columns[0]}


def _bytes(checkpoint: Path) -> int:
    """Of a file, or of a folder that distributed checkpoints make."""
    files = [checkpoint] if checkpoint.is_file() else [path for path in checkpoint.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files)
