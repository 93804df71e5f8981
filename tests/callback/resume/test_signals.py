"""Runs that are killed or asked to end, and go on as if nothing had been."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from torchdata.stateful_dataloader import StatefulDataLoader

from tests.callback.resume.test_resume import check_rest
from tests.support.endangered import OPTIONS
from tests.support.noisy import Noisy, train

pytestmark = [
    # Of Lightning about the run that is gone on with, and of torchdata about torch.
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
]

ROOT = Path(__file__).parents[3]


def end_by(number: signal.Signals, folder: Path) -> int:
    """Start the run, send the signal when it waits for it, and return its exit code."""
    command = [sys.executable, "-m", "tests.support.endangered", str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert any(line.strip() == "waiting" for line in process.stdout)
        process.send_signal(number)
        process.stdout.read()
        return process.wait(60)


@pytest.mark.parametrize(
    ("number", "first"),
    [
        # The last checkpoint is that of the optimizer step before: batch 2.
        (signal.SIGKILL, (1, 3)),
        # The batch in which the signal came is trained and saved.
        (signal.SIGTERM, (1, 5)),
    ],
)
def test_goes_on_after(tmp_path: Path, number: signal.Signals, first: tuple[int, int]) -> None:
    code = end_by(number, tmp_path / "ended")
    assert code == (-signal.SIGKILL if number == signal.SIGKILL else 0)
    rest = Noisy(StatefulDataLoader)
    train(tmp_path / "ended", rest, 99, "last", **OPTIONS)
    assert min(rest.losses) == first
    whole = Noisy(StatefulDataLoader)
    train(tmp_path / "whole", whole, 1, **OPTIONS)
    check_rest(whole, rest)
