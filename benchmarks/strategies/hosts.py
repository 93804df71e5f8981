"""Two hosts on one machine: network namespaces of Linux, joined by a virtual cable."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

INTERFACE = "cable0"
"""Name of the network interface within each host."""
_ADDRESSES = ("10.213.0.1", "10.213.0.2")


@dataclass(frozen=True)
class Host:
    """A host with a loopback and an address that only the other host reaches.

    Processes, files and memory are those of the machine; only the network is the host's own.

    Attributes:
        name: Of the network namespace, unique on this machine.
        address: What the other host calls it by.
    """

    name: str
    address: str

    def command(self, command: Sequence[str]) -> list[str]:
        """The command that runs the given one on this host."""
        return ["ip", "netns", "exec", self.name, *command]

    def variables(self) -> dict[str, str]:
        """The environment variables that gloo and NCCL need to take the cable."""
        return {"GLOO_SOCKET_IFNAME": INTERFACE, "NCCL_SOCKET_IFNAME": INTERFACE}

    def processes(self) -> list[int]:
        """Ids of all processes on this host."""
        done = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True)
        return [int(line) for line in done.stdout.split()]

    def stop(self) -> None:
        """End all its processes at once."""
        for process in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def lose_power(self) -> None:
        """End the host so that the other one hears nothing of it, not even that connections were closed."""
        _ip("-netns", self.name, "link", "set", INTERFACE, "down")
        self.stop()


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Make two hosts that reach each other; at the end they and every process on them are gone.

    Raises:
        RuntimeError: The system does not permit it; `refusal()` says so before.
    """
    run = uuid.uuid4().hex[:8]
    hosts = tuple(Host(f"host{number}-{run}", address) for number, address in enumerate(_ADDRESSES))
    first, second = hosts
    try:
        for host in hosts:
            _ip("netns", "add", host.name)
        # Both ends are made within the hosts: nothing of it is ever seen in the machine's own network.
        peer = ("peer", "name", INTERFACE, "netns", second.name)
        _ip("link", "add", INTERFACE, "netns", first.name, "type", "veth", *peer)
        for host in hosts:
            _ip("-netns", host.name, "address", "add", f"{host.address}/24", "dev", INTERFACE)
            _ip("-netns", host.name, "link", "set", INTERFACE, "up")
            _ip("-netns", host.name, "link", "set", "lo", "up")
        yield first, second
    finally:
        for host in hosts:
            with contextlib.suppress(subprocess.CalledProcessError, RuntimeError):
                host.stop()
                _ip("netns", "delete", host.name)


def refusal() -> str | None:
    """Why hosts cannot be made here, or None where they can."""
    if shutil.which("ip") is None:
        return "the command `ip` (iproute2) is missing"
    try:
        with two_hosts():
            return None
    except RuntimeError as error:
        return str(error)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"`ip {' '.join(arguments)}`: {done.stderr.strip()}")
