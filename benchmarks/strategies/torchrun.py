"""The commands that start a program by torchrun, on one host or on the two of `benchmarks.strategies.hosts`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.strategies.hosts import Host

_PORT = 29400
"""On hosts of their own it is always free."""


def on_one_host(program: Sequence[str], processes: int) -> list[str]:
    """Start so many processes; the port is any free one.

    Args:
        program: Module and its arguments.
        processes: How many.
    """
    return [*_torchrun("--standalone", "--nproc-per-node", str(processes)), *program]


def on_hosts(hosts: Sequence[Host], program: Sequence[str], processes: int = 1) -> list[list[str]]:
    """Start so many processes on each host; one command for each host.

    Args:
        hosts: The first one is where all meet.
        program: Module and its arguments.
        processes: How many on each host.
    """
    meeting = [
        *("--nnodes", str(len(hosts)), "--nproc-per-node", str(processes)),
        *("--master-addr", hosts[0].address, "--master-port", str(_PORT)),
    ]
    return [
        host.command([*_torchrun(*meeting, "--node-rank", str(number)), *program]) for number, host in enumerate(hosts)
    ]


def _torchrun(*options: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *options, "-m"]
