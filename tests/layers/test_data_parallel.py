"""Two processes under DistributedDataParallel train as one process on both their batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from pera_lightning import PeraConfig, inject_adapter
from tests.support.models import randomise_adapter


def make_model(dropout: float) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 5))
    inject_adapter(model, PeraConfig(3, dropout=dropout, target_modules=["0", "2"]))
    randomise_adapter(model)
    return model.train()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def inputs(rank: int) -> Tensor:
    return torch.randn(4, 12, generator=torch.Generator().manual_seed(rank))


def work(rank: int, folder: str, dropout: float) -> None:
    # Every rank seeded alike, as Lightning's seed_everything does.
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model = DistributedDataParallel(make_model(dropout))
    torch.manual_seed(1)
    model(inputs(rank)).square().mean().backward()
    torch.save(gradients(model.module), f"{folder}/{rank}.pt")
    # DDP must not hold the last reference to the group: it would join the group's threads while it holds the
    # interpreter's lock, which those threads wait for. destroy_process_group lets go of the lock.
    del model
    distributed.destroy_process_group()


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_gradients(tmp_path: Path, dropout: float) -> None:
    # As daemons, so that a test that runs out of time takes them with it.
    multiprocessing.spawn(work, (str(tmp_path), dropout), nprocs=2, daemon=True)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    model = make_model(dropout)
    for rank in range(2):
        torch.manual_seed(1)
        (model(inputs(rank)).square().mean() / 2).backward()
    expected = gradients(model)
    assert expected.keys() == found[0].keys()
    assert expected
    for name, gradient in expected.items():
        torch.testing.assert_close(found[0][name], gradient)
        assert torch.equal(found[0][name], found[1][name])
