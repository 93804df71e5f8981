"""Adapters of different forms on one small network, and what each is to answer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from torch import Tensor

from pera_lightning import AdapterSet
from pera_lightning.concurrency import turns
from tests.support.paused_calls import LONG, reference
from tests.support.several_adapters import network, save_all

SOON = 0.15
"""Seconds that changes wait for others in tests where they wait in vain."""


@pytest.fixture(scope="package")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of one trained adapter per entry of `CONFIGS`."""
    return save_all(tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="package")
def answers(folders: dict[str, Path]) -> Mapping[str | None, Tensor]:
    """What the network answers with each adapter, and as the base."""
    return {None: reference(None), **{name: reference(folder) for name, folder in folders.items()}}


@pytest.fixture
def adapters(folders: dict[str, Path]) -> AdapterSet:
    """All adapters in a set, "weather" in place."""
    made = AdapterSet(network())
    for name, folder in folders.items():
        made.load(name, folder)
    made.switch("weather")
    return made


@pytest.fixture(autouse=True)
def patience(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes wait longer than any call takes on a busy machine."""
    monkeypatch.setattr(turns, "PATIENCE", SOON if "impatient" in request.fixturenames else 4 * LONG)


@pytest.fixture
def impatient() -> None:
    """Changes give up soon."""
