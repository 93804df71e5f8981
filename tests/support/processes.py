"""Runs a script of `tests/support` in processes that are forked from one which has imported the libraries."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import runpy
import socket
import sys
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.conftest import LEFT_BEHIND, ROOT

# Each process would take seconds to import them. None of ours in tests/: some hold which process they are in.
LIBRARIES = [
    "lightning.pytorch.strategies",
    "pera_lightning.callback.callback",
    "pera_lightning.models.causal_lm",
    "torch.distributed.fsdp",
    "torchdata.stateful_dataloader",
    "transformers.models.llama.modeling_llama",
]


def forkserver() -> multiprocessing.context.ForkServerContext:
    """What starts them; there is one server in a process, and the first to ask says what it imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    return context


def run_script(module: str, *words: object, processes: int | None = None, timeout: float = 280) -> None:
    """Run `python -m module words`, and fail with what it printed.

    Args:
        processes: How many to start, as `torchrun` would: each Trainer in them is for that many. None: one, whose
            Trainers start others as they need them.
        timeout: Seconds after which all are killed.
    """
    context = forkserver()
    with TemporaryDirectory() as folder:
        environments = [{}] if processes is None else _ranks(processes)
        outputs = [Path(folder) / str(rank) for rank in range(len(environments))]
        started = [
            context.Process(target=_run, args=(module, list(map(str, words)), environment, output))
            for environment, output in zip(environments, outputs, strict=True)
        ]
        try:
            for process in started:
                process.start()
            codes = _wait(started, timeout)
        finally:
            for process in started:
                process.kill()
                process.join()
        printed = "\n".join(output.read_text(errors="replace")[-6000:] for output in outputs if output.exists())
    assert codes == [0] * len(started), f"{codes}\n{printed}"


def _ranks(processes: int) -> list[dict[str, str]]:
    """What each process finds in its environment: who it is, and a free port, since other fits may run here."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    same = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "WORLD_SIZE": str(processes)}
    return [{**same, "LOCAL_RANK": str(rank)} for rank in range(processes)]


def _wait(started: Sequence[BaseProcess], timeout: float) -> list[int | None]:
    """Exit codes of all; None of one that was still running when another had failed, or the time was over."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        codes = [process.exitcode for process in started]
        if None not in codes or any(codes):
            return codes
        multiprocessing.connection.wait([process.sentinel for process in started if process.exitcode is None], 1.0)
    return [process.exitcode for process in started]


def _run(module: str, words: list[str], environment: dict[str, str], output: Path) -> None:
    """As a fresh interpreter would, but for the libraries that are there already."""
    import torch
    from lightning_utilities.core.rank_zero import rank_zero_only

    with output.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(ROOT)
    for name in LEFT_BEHIND:
        os.environ.pop(name, None)
    os.environ |= environment
    rank_zero_only.rank = int(environment.get("LOCAL_RANK", 0))
    torch.set_num_threads(1)
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
