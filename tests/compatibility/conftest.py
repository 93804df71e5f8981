"""Collects what the tests of the compatibility tables found and compares docs/compatibility.md with it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.compatibility.table import compare
from tests.support.model_types import model_types
from tests.support.zoo import ZOO

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"
# `make compatibility` sets this: then the page is written instead of compared.
WRITE = os.environ.get("PERA_WRITE_COMPATIBILITY") == "1"
FOUND = "compatibility"
"""Name of the property under which a test reports (model, check, refusal)."""

_outcomes: dict[tuple[str, str], str] = {}
_complaints: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and report.passed:
        for name, value in report.user_properties:
            if name == FOUND:
                model, check, refusal = value
                _outcomes[model, check] = refusal


def pytest_sessionfinish(session: pytest.Session) -> None:
    complaint = compare(ZOO, model_types(), _outcomes, PAGE, write=WRITE)
    if complaint:
        _complaints.append(complaint)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _complaints:
        terminalreporter.section("compatibility table")
        for line in _complaints:
            terminalreporter.line(line)
