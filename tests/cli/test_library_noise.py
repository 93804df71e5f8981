from __future__ import annotations

import logging
import subprocess
import sys
import warnings
from collections.abc import Iterator

import pytest
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from pera_lightning.cli.library_noise import _says_something, hush_libraries

LOGGERS = [logging.getLogger(f"lightning.{name}.utilities.rank_zero") for name in ("pytorch", "fabric")]
NOISE = (
    "💡 Tip: For seamless cloud uploads and versioning, try installing [litmodels]",
    "TPU available: False, using: 0 TPU cores",
    "HPU available: False, using: 0 HPUs",
    "Loading `train_dataloader` to estimate number of stepping batches.",
)
FACTS = "GPU available: True (cuda), used: True", "TPU available: True, using: 8 TPU cores", "Seed set to 0"


@pytest.fixture
def hushed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("TQDM_DELAY", "TQDM_MININTERVAL"):
        monkeypatch.setenv(name, "0")
    with warnings.catch_warnings():
        hush_libraries()
        yield
    for logger in LOGGERS:
        logger.removeFilter(_says_something)


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def test_lines_that_say_nothing_are_left_out_and_others_stay(hushed: None) -> None:
    kept = Kept()
    for logger in LOGGERS:
        logger.addHandler(kept)
    try:
        for line in (*NOISE, *FACTS):
            rank_zero_info(line)
    finally:
        for logger in LOGGERS:
            logger.removeHandler(kept)
    assert kept.messages == list(FACTS)


def test_warnings_that_say_nothing_are_left_out_and_others_stay(hushed: None) -> None:
    rank_zero_warn("No seed found, seed set to 0")
    rank_zero_warn("Found 47 module(s) in eval mode at the start of training. This may lead to")
    with pytest.warns(UserWarning, match="smaller than the logging interval"):
        rank_zero_warn("The number of training batches (4) is smaller than the logging interval")


def test_somebody_elses_script_hears_everything() -> None:
    code = (
        "import logging, warnings, pera_lightning, pera_lightning.cli.main, pera_lightning.callback.callback\n"
        "loggers = [logging.getLogger(f'lightning.{name}.utilities.rank_zero') for name in ('pytorch', 'fabric')]\n"
        "print(sum(len(logger.filters) for logger in loggers), any('seed' in str(f) for f in warnings.filters))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["0", "False"]
