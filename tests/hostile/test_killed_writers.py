"""Whenever a writer is killed, one whole state is there, and the next write finds nothing in its way."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.hostile.forge import KILLS, Tally, Worker, tally
from tests.hostile.kills.killing import FINE
from tests.hostile.kills.meetings import MEETINGS
from tests.hostile.kills.places import PLACES

pytestmark = pytest.mark.timeout(600 if KILLS <= 40 else 0)


@pytest.mark.parametrize("place", PLACES)
def test_a_killed_writer_leaves_the_old_state_or_the_new_one(
    worker: Worker, place: str, report: Callable[[str, Tally], None]
) -> None:
    report(place, tally(worker, place, KILLS, FINE))


@pytest.mark.parametrize("meeting", MEETINGS)
def test_processes_that_meet(worker: Worker, meeting: str, report: Callable[[str, Tally], None]) -> None:
    report(meeting, tally(worker, meeting, max(2, KILLS // 8), FINE))
