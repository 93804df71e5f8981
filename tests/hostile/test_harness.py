"""The harness itself finds what it looks for."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pera_lightning.errors import ConfigError
from tests.hostile import outcomes, worker
from tests.hostile.kinds import Case, Kind
from tests.hostile.readers.adapters import unchanged_if_refused
from tests.hostile.worker import Forge


def refuses(case: Case) -> None:
    raise ConfigError("No.", got="a", expected="b", fix="c")


def changes_and_refuses(case: Case) -> None:
    model = nn.Linear(2, 2)
    with unchanged_if_refused(model):
        model.bias.requires_grad_(False)
        refuses(case)


def allocates(case: Case) -> None:
    torch.ones(80_000_000).sum()


def allocates_too_much(case: Case) -> None:
    try:
        torch.empty(10**12)
    except RuntimeError as error:
        raise ConfigError("No.", got="a", expected="b", fix="c") from error


def runs(case: Case) -> None:
    case.canary.touch()


def touches(case: Case) -> None:
    (case.given / "file").write_text("other")


def touches_beside(case: Case) -> None:
    (case.given.parent / "theirs/more").touch()


def loops(case: Case) -> None:
    while True:
        pass


def waits(case: Case) -> None:
    time.sleep(3600)


def dies(case: Case) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def is_wrong(case: Case) -> None:
    raise outcomes.Wrong("not finite")


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (refuses, outcomes.CLEAN),
        (lambda case: None, outcomes.RIGHT),
        (lambda case: {}["x"], outcomes.OTHER),
        (lambda case: exit(1), outcomes.OTHER),
        (dies, outcomes.OTHER),
        (loops, outcomes.HANG),
        (waits, outcomes.HANG),
        (allocates, outcomes.MEMORY),
        (allocates_too_much, outcomes.MEMORY),
        (is_wrong, outcomes.WRONG),
        (changes_and_refuses, outcomes.CHANGED),
        (runs, outcomes.RAN),
        (touches, outcomes.TOUCHED),
        (touches_beside, outcomes.TOUCHED),
    ],
)
def test_every_outcome_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Case], Any], expected: str
) -> None:
    monkeypatch.setattr(worker, "CPU_SECONDS", 0)
    monkeypatch.setattr(worker, "WAITING_SECONDS", 3)
    kind = Kind("tried", lambda folder: _write(folder), lambda case: "nothing", {"read": read})
    answer = Forge({"tried": kind}, tmp_path).run("tried", 0, 0)
    found = [outcome for _, outcome, _ in answer["reads"]]
    assert found == ([outcomes.RIGHT, expected] if expected in (outcomes.RAN, outcomes.TOUCHED) else [expected])


def _write(folder: Path) -> None:
    (folder / "variant").mkdir()
    (folder / "variant/file").write_text("text")
