"""The files of results: one for each run, rewritten after each of its rows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.gpu.card import ROOT

FOLDER = ROOT / "benchmarks" / "results" / "gpu"
Result = dict[str, Any]


def new_path(folder: Path, header: dict[str, Any]) -> Path:
    """Named after date and card; a further run of that day has a number."""
    card = re.sub(r"[^a-z0-9]+", "-", header["card"].lower()).strip("-")
    stem = f"{header['date']}_{card}"
    number = 1
    while (path := folder / (f"{stem}.json" if number == 1 else f"{stem}_{number}.json")).exists():
        number += 1
    return path


def write(path: Path, header: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Replace the file at once: a run that is killed leaves a whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps({**header, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def read(folder: Path) -> list[Result]:
    """All results, the newest first."""
    found = [(path.name, json.loads(path.read_text(encoding="utf-8"))) for path in folder.glob("*.json")]
    return [result for _, result in sorted(found, key=lambda pair: (pair[1]["date"], pair[0]), reverse=True)]


def step_ratios(result: Result) -> dict[str, float]:
    """Step time of PERA over LoRA's by the rows' names."""
    steps = [row for row in result["rows"] if row["part"] == "step" and "figures" in row]
    return {row["name"]: row["figures"]["ratio"] for row in steps}
