"""A base whose weights are all small passed for any other such base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pera_lightning import PeraConfig, inject_adapter, load_adapter, save_adapter
from pera_lightning.errors import AdapterFileError
from tests.support.models import randomise_adapter

FLOATS = [torch.float32, torch.bfloat16, torch.float16]


def base(scale: float, seed: int = 0, factor: float = 1.0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32), nn.Linear(32, 3))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(scale * factor)
    return model


@pytest.mark.parametrize("scale", [1e-3, 3e-4, 1e-4, 1e-5])
@pytest.mark.parametrize("dtype", FLOATS)
def test_small_weights_are_compared(tmp_path: Path, scale: float, dtype: torch.dtype) -> None:
    model = base(scale).to(dtype)
    inject_adapter(model, PeraConfig(2, target_modules=["0", "2"]))
    randomise_adapter(model, 0.3)
    save_adapter(model, tmp_path)
    for here in FLOATS:
        load_adapter(base(scale).to(dtype).to(here), tmp_path)
        load_adapter(base(scale).to(here), tmp_path)
        for other in (base(scale, seed=1), base(scale, factor=1.3)):
            with pytest.raises(AdapterFileError, match="another base than this one"):
                load_adapter(other.to(here), tmp_path)
