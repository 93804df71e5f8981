"""`ExactResume` by itself: a Trainer without adapters goes on to the same bits too."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torchdata.stateful_dataloader import StatefulDataLoader

from pera_lightning import ExactResume, PeraCallback
from pera_lightning.errors import CheckpointError
from tests.support.noisy import Noisy, train

pytestmark = [
    pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
]


def with_both() -> list[pl.Callback]:
    return [ExactResume(), PeraCallback(2, dropout=0.1)]


def resumed(folder: Path, beside: list[list[pl.Callback]]) -> tuple[Noisy, Noisy]:
    """A whole run, and one that went on from its second epoch's third batch with another seed."""
    whole, rest = Noisy(StatefulDataLoader), Noisy(StatefulDataLoader)
    options = {"accumulate_grad_batches": 4, "max_epochs": 3, "saving": {"every_n_train_steps": 1}}
    train(folder / "whole", whole, 1, save_after=2, beside=beside[0], **options)
    train(folder / "rest", rest, 99, folder / "whole" / "extra.ckpt", beside=beside[1], **options)
    return whole, rest


def test_without_adapters(tmp_path: Path) -> None:
    whole, rest = resumed(tmp_path, [[ExactResume()], [ExactResume()]])
    assert min(rest.losses) == (0, 3)
    assert all(torch.equal(whole.losses[step], loss) for step, loss in rest.losses.items())
    for name, value in whole.state_dict().items():
        assert torch.equal(rest.state_dict()[name], value), name


def test_lightning_alone_goes_on_otherwise(tmp_path: Path) -> None:
    whole, rest = resumed(tmp_path, [[], []])
    assert not all(torch.equal(whole.losses[step], loss) for step, loss in rest.losses.items())


def test_beside_the_one_that_the_adapters_bring_along(tmp_path: Path) -> None:
    whole, rest = resumed(tmp_path, [with_both(), with_both()])
    assert all(torch.equal(whole.losses[step], loss) for step, loss in rest.losses.items())
    held = torch.load(tmp_path / "whole" / "extra.ckpt", weights_only=True)
    assert len(held["pera_processes"]) == 1


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "damaged.ckpt"
    path.write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match=r"damaged\.ckpt"):
        train(tmp_path / "run", Noisy(), 1, path, beside=[ExactResume()])
