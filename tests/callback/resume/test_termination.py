"""SIGTERM to one of several processes ends all of them after the same batch, and nothing is lost."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from safetensors.torch import load_file

from pera_lightning.callback.resume.termination import JointTermination
from tests.support.processes import run_script
from tests.support.synchronisation import NoWaiting, treat_as_asynchronous
from tests.support.terminated import MOMENTS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("terminated")
    run_script("tests.support.terminated", folder)
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


def several() -> Any:
    """What JointTermination needs of a Trainer with two processes."""
    connector = SimpleNamespace(_sigterm_notifier_fn=lambda number, frame: None, received_sigterm=False)
    loop = SimpleNamespace(batch_progress=SimpleNamespace(current=SimpleNamespace(ready=1)))
    loop._broadcast_sigterm_tensor = lambda: None
    return SimpleNamespace(
        _signal_connector=connector,
        fit_loop=SimpleNamespace(epoch_loop=loop),
        strategy=SimpleNamespace(root_device=torch.device("cpu"), launcher=None),
        world_size=2,
    )


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], None]]:
    """Sets how many processes have received the signal."""
    present = [0.0]
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.fill_(present[0]))
    before = signal.getsignal(signal.SIGTERM)
    yield lambda count: present.__setitem__(0, count)
    signal.signal(signal.SIGTERM, before)


def test_on_a_cpu_the_answer_counts_at_once(answers: Callable[[float], None]) -> None:
    trainer = several()
    JointTermination().on_train_start(trainer)
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor()
    answers(1)
    with pytest.raises(SIGTERMException):
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor()


def test_on_a_gpu_no_batch_waits_for_the_answer(
    answers: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = NoWaiting()
    treat_as_asynchronous(monkeypatch, watch)
    trainer, termination = several(), JointTermination()
    ask = lambda: trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor()  # noqa: E731
    termination.on_train_start(trainer)
    with watch:
        ask()
        answers(1)
        # The answer is yes, but nobody looks at it before the next batch.
        ask()
        with pytest.raises(SIGTERMException):
            ask()
    # What was asked within an epoch does not count in the next, before which all are asked at once.
    answers(0)
    termination.on_train_epoch_end(trainer)
    assert not trainer._signal_connector.received_sigterm
    ask()
    answers(2)
    termination.on_train_epoch_end(trainer)
    assert trainer._signal_connector.received_sigterm
