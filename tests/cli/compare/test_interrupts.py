"""Ctrl-C in a comparison."""

from __future__ import annotations

import os
import signal

import pytest

from pera_lightning.cli.compare.interrupts import STOPPED, raise_swallowed, told_interrupts


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_it_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    earlier = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as stop, told_interrupts():
        press()
    assert stop.value.code == STOPPED
    assert "the same command goes on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is earlier


def test_lightnings_way_out_is_told_too(capsys: pytest.CaptureFixture[str]) -> None:
    def leave() -> None:
        try:
            press()
        except KeyboardInterrupt:
            raise SystemExit(1) from None

    with pytest.raises(SystemExit) as stop, told_interrupts():
        leave()
    assert stop.value.code == STOPPED
    assert "Interrupted" in capsys.readouterr().err


def test_one_that_was_swallowed_counts_at_the_end_of_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    later = []

    def swallow() -> None:
        try:
            press()
        except KeyboardInterrupt:
            later.append("swallowed")
        raise_swallowed()
        later.append("went on")

    with pytest.raises(SystemExit) as stop, told_interrupts():
        swallow()
    assert (stop.value.code, later) == (STOPPED, ["swallowed"])
    assert "Interrupted" in capsys.readouterr().err


def test_other_ends_stay_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop, told_interrupts():
        raise SystemExit(2)
    assert stop.value.code == 2
    with pytest.raises(KeyError), told_interrupts():
        raise KeyError
    with told_interrupts():
        raise_swallowed()
    assert "Interrupted" not in capsys.readouterr().err
