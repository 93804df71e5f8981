"""`validate`, `test` and `predict` take an adapter folder where a checkpoint is meant; `fit` says what to take."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from pera_lightning import PeraCallback
from pera_lightning.errors import AdapterFileError, CheckpointError
from tests.support.callback_fits import make_trainer
from tests.support.models import Regressor
from tests.support.trainers import SAFE_LOADING


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter folder, with the checkpoint of the same fit beside it."""
    callback = PeraCallback(rank=2, adapter_dir=str(tmp_path / "adapter"))
    trainer = make_trainer(tmp_path, callback, max_epochs=1, enable_checkpointing=False)
    trainer.fit(Regressor())
    trainer.save_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    return tmp_path / "adapter"


def trainer_for(folder: Path, rank: int = 2) -> pl.Trainer:
    return make_trainer(folder.parent, PeraCallback(rank=rank), enable_checkpointing=False)


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_is_as_good_as_the_checkpoint(folder: Path, command: str) -> None:
    results = []
    for path in (folder, folder.parent / "checkpoints" / "last.ckpt"):
        module = Regressor()
        getattr(trainer_for(folder), command)(module, ckpt_path=str(path), **SAFE_LOADING)
        results.append(module.net(torch.ones(1, 6)))
    torch.testing.assert_close(*results, rtol=0, atol=0)
    assert not torch.equal(results[0], Regressor().net(torch.ones(1, 6)))


def test_fit_names_the_checkpoint_beside_it(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"to go on with its fit, name \S*checkpoints/last\.ckpt"):
        trainer_for(folder).fit(Regressor(), ckpt_path=str(folder), **SAFE_LOADING)


def test_another_form_or_base_is_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="the rank is 2 there and 3 here"):
        trainer_for(folder, rank=3).test(Regressor(), ckpt_path=str(folder), **SAFE_LOADING)
    other = Regressor()
    torch.nn.init.ones_(other.net[0].weight)
    with pytest.raises(CheckpointError, match="written with another base"):
        trainer_for(folder).test(other, ckpt_path=str(folder), **SAFE_LOADING)


def test_a_damaged_folder_is_refused(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(AdapterFileError, match="weights cannot be read"):
        trainer_for(folder).test(Regressor(), ckpt_path=str(folder), **SAFE_LOADING)
