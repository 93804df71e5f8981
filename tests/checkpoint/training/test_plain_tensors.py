"""Sparse, nested and other tensors in a checkpoint are refused by name; views are read as what they show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pera_lightning import PeraCallback
from pera_lightning.checkpoint.training.consolidation import consolidate
from pera_lightning.errors import CheckpointError, PeraError
from tests.support.callback_fits import make_trainer
from tests.support.models import Regressor
from tests.support.trainers import SAFE_LOADING

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta state:UserWarning"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning"),
]
FACTOR = "net.0.pera_A"


class Subclass(torch.Tensor):
    pass


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    trainer = make_trainer(folder, PeraCallback(rank=2), enable_checkpointing=False, max_epochs=1)
    trainer.fit(Regressor())
    trainer.save_checkpoint(folder / "whole.ckpt")
    return folder / "whole.ckpt"


def with_factor(whole: Path, path: Path, change: Callable[[Tensor], Tensor]) -> Tensor:
    held = torch.load(whole, weights_only=True)
    before = held["state_dict"][FACTOR]
    held["state_dict"][FACTOR] = change(before)
    torch.save(held, path)
    return before


OTHERS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "coo": (lambda tensor: tensor.to_sparse(), "sparse_coo"),
    "csr": (lambda tensor: tensor.to_sparse_csr(), "sparse_csr"),
    "bsr": (lambda tensor: tensor.to_sparse_bsr((1, 1)), "sparse_bsr"),
    "nested": (lambda tensor: torch.nested.nested_tensor(list(tensor)), "a nested tensor"),
    "quantised": (lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8), "quantised"),
    "meta": (lambda tensor: tensor.to("meta"), "without values"),
    "subclass": (lambda tensor: tensor.as_subclass(Subclass), "of the class Subclass"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_tensors_are_refused(whole: Path, tmp_path: Path, name: str) -> None:
    change, words = OTHERS[name]
    with_factor(whole, tmp_path / "other.ckpt", change)
    with torch.serialization.safe_globals([Subclass]):
        with pytest.raises(CheckpointError, match=rf"'{FACTOR}', .*{words}"):
            consolidate(tmp_path / "other.ckpt", tmp_path / "adapter")
        trainer = make_trainer(tmp_path, PeraCallback(rank=2))
        with pytest.raises(CheckpointError, match=rf"'{FACTOR}', .*{words}"):
            trainer.test(Regressor(), ckpt_path=tmp_path / "other.ckpt", **SAFE_LOADING)
    assert not (tmp_path / "adapter").exists()


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "turned": lambda tensor: tensor.t().contiguous().t(),
    "part": lambda tensor: torch.cat([tensor, tensor])[: len(tensor)],
    "negated": lambda tensor: (torch.zeros_like(tensor) - 1j * tensor).conj().imag,
    "parameter": torch.nn.Parameter,
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_are_what_they_show(whole: Path, tmp_path: Path, name: str) -> None:
    before = with_factor(whole, tmp_path / "view.ckpt", VIEWS[name])
    folder = Path(consolidate(tmp_path / "view.ckpt", tmp_path / "adapter"))
    assert torch.equal(load_file(folder / "adapter_model.safetensors")[FACTOR], before)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64, torch.bool, torch.float8_e5m2, torch.uint16])
def test_other_dtypes_are_refused(whole: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    with_factor(whole, tmp_path / "other.ckpt", lambda tensor: tensor.to(dtype))
    with pytest.raises(PeraError, match=str(dtype).removeprefix("torch.")):
        consolidate(tmp_path / "other.ckpt", tmp_path / "adapter")
