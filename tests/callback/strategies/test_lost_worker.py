"""What is said when another process has ended, and when something else went wrong."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.distributed import DistBackendError

from pera_lightning.callback.strategies.lost_worker import explain_lost_worker

GLOO = RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:41161.")


def said(caplog: pytest.LogCaptureFixture, exception: BaseException, **options: Any) -> str:
    trainer = {"world_size": 4, "global_rank": 3, "checkpoint_callback": None, "ckpt_path": None, **options}
    with caplog.at_level(logging.ERROR):
        explain_lost_worker(SimpleNamespace(**trainer), exception)
    return caplog.text


@pytest.mark.parametrize(
    "exception", [GLOO, DistBackendError("NCCL error"), RuntimeError("timeout caused pair closure")]
)
def test_names_the_rank_and_the_checkpoint(caplog: pytest.LogCaptureFixture, exception: BaseException) -> None:
    checkpoints = ModelCheckpoint()
    checkpoints.last_model_path = "runs/last.ckpt"
    text = said(caplog, exception, checkpoint_callback=checkpoints, ckpt_path="older.ckpt")
    assert "PERA: rank 3 of 4 stops" in text
    assert "fit(ckpt_path='runs/last.ckpt')" in text


def test_names_the_checkpoint_it_began_with_while_there_is_no_later_one(caplog: pytest.LogCaptureFixture) -> None:
    assert "fit(ckpt_path='older.ckpt')" in said(
        caplog, GLOO, checkpoint_callback=ModelCheckpoint(), ckpt_path="older.ckpt"
    )
    caplog.clear()
    assert "start the run again" in said(caplog, GLOO)


def test_says_nothing_of_other_errors(caplog: pytest.LogCaptureFixture) -> None:
    assert not said(caplog, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not said(caplog, KeyboardInterrupt())
    assert not said(caplog, GLOO, world_size=1)
