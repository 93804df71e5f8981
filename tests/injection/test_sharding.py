"""Where parameters of adapted models are sharded."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributed.tensor import Shard

from pera_lightning.injection.sharding import shard_placement


@pytest.mark.parametrize(
    ("shape", "ranks", "columns"),
    [
        ((16, 64), 8, False),  # the rows divide
        ((16, 64), 32, True),
        ((3, 64), 2, True),
        ((16, 60), 32, False),  # neither does
        ((1001, 16), 16, False),  # B: hardly any padding
        ((136,), 8, False),
        ((136,), 3, False),
        ((3, 64), 1, False),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_placement(shape: tuple[int, ...], ranks: int, columns: bool, device: str) -> None:
    parameter = nn.Parameter(torch.empty(shape, device=device))
    assert shard_placement(ranks)(parameter) == (Shard(1) if columns else None)


def test_the_base_is_sharded_as_ever() -> None:
    assert shard_placement(2)(nn.Parameter(torch.empty(3, 64), requires_grad=False)) is None
