"""Adapters of different forms on one small network."""

from __future__ import annotations

from pathlib import Path

import pytest

from pera_lightning import AdapterSet
from tests.support.several_adapters import network, save_all


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of one trained adapter per entry of `CONFIGS`."""
    return save_all(tmp_path_factory.mktemp("adapters"))


@pytest.fixture
def adapters(folders: dict[str, Path]) -> AdapterSet:
    """All of them in a set, none in place."""
    made = AdapterSet(network())
    for name, folder in folders.items():
        made.load(name, folder)
    return made
