"""Failures written to a file as they come: a run that is killed leaves its reasons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

KEPT = 12
"""Lines of a failure's end."""


def note(report: Any, path: str | None) -> None:
    """Append a failed report's name and the end of its traceback to a file, if one is named."""
    if path and report.failed:
        lines = str(report.longrepr).splitlines()[-KEPT:]
        with Path(path).open("a", encoding="utf-8") as file:
            file.write("\n".join([f"FAILED {report.nodeid} ({getattr(report, 'when', 'collection')})", *lines, "", ""]))
