"""Adapted models as programs of torch.export, for any number of rows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pera_lightning import PeraConfig, inject_adapter
from tests.support.models import randomise_adapter

DIMENSIONS = [torch.export.Dim("rows"), torch.export.Dim.DYNAMIC]


@pytest.mark.parametrize("rows", DIMENSIONS, ids=["named", "dynamic"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("strict", [True, False])
def test_a_program_serves_any_number_of_rows(order: int, rows: object, strict: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    inject_adapter(model, PeraConfig(2, order, target_modules=["0"]))
    randomise_adapter(model)
    model.eval()
    program = torch.export.export(model, (torch.randn(5, 6),), dynamic_shapes=({0: rows},), strict=strict).module()
    for count in (2, 5, 77, 3000):
        x = torch.randn(count, 6)
        torch.testing.assert_close(program(x), model(x), rtol=1e-5, atol=1e-6)
