"""Processes that die at a chosen one of their calls that change files: every place where a kill can hit, in turn."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator

CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "os.chown", "os.truncate", "shutil.rmtree"}


def crashes(act: Callable[[], object]) -> Iterator[int]:
    """Do something again and again, each time in a process of its own, which dies one call later.

    Args:
        act: What to do, from Python; calls of libraries in C count from one Python call to the next.

    Yields:
        Number of the call before which it died; not the time when it came to its end.
    """
    number = 0
    while _dies(act, number):
        yield number
        number += 1


def _dies(act: Callable[[], object], number: int) -> bool:
    child = os.fork()
    if not child:
        code = 1
        try:
            _die_at(number)
            act()
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, DIED), f"call {number}: {code}"
    return code == DIED


DIED = 77


def _die_at(number: int) -> None:
    from pera_lightning.storage import whole_folder

    left = number

    def count() -> None:
        nonlocal left
        if left == 0:
            os._exit(DIED)
        left -= 1

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        written = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if event in CHANGES or written:
            count()

    exchange = whole_folder.exchange

    def counted(*folders: object) -> None:
        count()
        exchange(*folders)  # type: ignore[arg-type]

    # ctypes tells the audit nothing.
    whole_folder.exchange = counted  # type: ignore[assignment]
    sys.addaudithook(audit)
