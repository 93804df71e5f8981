"""Workers for the tests, and the tables that docs/reliability.md is written of."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from tests.hostile.forge import Tally, Worker
from tests.hostile.table import PAGE, Found, write

# `make reliability` sets this: then the page is written.
WRITE = os.environ.get("PERA_WRITE_RELIABILITY") == "1"
FOUND = "reliability"
"""Name of the property under which a test reports (name, files, outcomes)."""

_found: dict[str, Found] = {}
_complaints: list[str] = []


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    worker = Worker(tmp_path_factory.mktemp("hostile"))
    yield worker
    worker.close()


@pytest.fixture
def report(record_property: Callable[[str, object], None]) -> Callable[[str, Tally], None]:
    """Tells the table what was found, and fails with what is not as it should be."""

    def told(name: str, tally: Tally) -> None:
        record_property(FOUND, (name, tally.files, dict(tally.reads)))
        shown = "\n".join(tally.failures[:20])
        assert not tally.failures, f"{len(tally.failures)} of {tally.files}:\n{shown}"

    return told


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    for name, value in report.user_properties:
        if name == FOUND and report.when == "call":
            _found[value[0]] = Found(value[1], value[2], report.passed)


def pytest_sessionfinish(session: pytest.Session) -> None:
    # Of several processes, the first hears of all tests.
    first = not hasattr(session.config, "workerinput")
    complaint = write(_found, PAGE) if WRITE and first else None
    if complaint:
        _complaints.append(complaint)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in _complaints:
        terminalreporter.line(line)
