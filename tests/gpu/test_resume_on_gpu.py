"""An interrupted run equals the uninterrupted one bit by bit, on a GPU in torch's deterministic mode."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torchdata.stateful_dataloader import StatefulDataLoader

from tests.callback.resume.test_resume import AFTER_LAST_BATCH, check_same, pair

pytestmark = [
    # Of Lightning about checkpoints kept elsewhere, and of torchdata about torch.
    pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
]


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def options(accelerator: str) -> dict[str, Any]:
    return {"accelerator": accelerator, "devices": 1}


def test_after_a_finished_epoch(tmp_path: Path, options: dict[str, Any]) -> None:
    rest = check_same(tmp_path, "step=6", pair(StatefulDataLoader), saving=AFTER_LAST_BATCH, **options)
    assert min(rest.losses) == (1, 0)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_in_the_middle_of_an_epoch(tmp_path: Path, options: dict[str, Any], precision: Any) -> None:
    saving = {"every_n_train_steps": 3}
    rest = check_same(
        tmp_path, "step=3", pair(StatefulDataLoader), saving=saving, precision=precision, limit_val_batches=0, **options
    )
    assert min(rest.losses) == (0, 3)
