"""Adapters at URLs, of fsspec's file system in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pytest
import torch
from torch import nn

from pera_lightning import PeraConfig, inject_adapter
from tests.support.models import randomise_adapter


@contextmanager
def no_folder_of_a_scheme(folder: Path) -> Iterator[None]:
    """Works in a folder, with nothing in memory, and looks afterwards that no folder was named after a scheme."""
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield
    assert not [name for name in os.listdir(folder) if name.endswith(":")]
    memory.store.clear()


def adapted() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    inject_adapter(model, PeraConfig(2))
    randomise_adapter(model)
    return model


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
