"""SIGTERM to one of several processes ends all of them after the same batch, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.strategies.test_ddp import run
from tests.support.terminated import MOMENTS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("terminated")
    run("tests.support.terminated", str(folder))
    return folder


@pytest.mark.parametrize(("rank", "step"), MOMENTS[1:])
def test_goes_on_as_if_nothing_had_been(folder: Path, rank: int, step: int) -> None:
    saved = torch.load(folder / f"{rank}-{step}" / "last-sigterm.ckpt", weights_only=True)
    # The batch in which the signal came is trained.
    assert saved["global_step"] == step + 1
    whole, rest = (
        load_file(folder / name / "adapter" / "adapter_model.safetensors") for name in ("-1-0", f"{rank}-{step}")
    )
    assert whole.keys() == rest.keys()
    assert all(torch.equal(value, rest[name]) for name, value in whole.items())
