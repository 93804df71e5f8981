"""Constants made by an earlier call met the fake tensors of a later one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pera_lightning import PeraConfig, PeraLinear

RANK, IN, OUT = 3, 10, 7


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_constants_of_real_tensors_are_none_of_a_fake_mode(order: int, scale: float) -> None:
    """In turns: none may be left of either."""
    layer = PeraLinear(nn.Linear(IN, OUT), PeraConfig(RANK, order, coefficient_scale=scale))
    many, x = torch.randn(500, IN), torch.randn(2, IN)

    def step(x: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        y = torch.func.functional_call(layer, parameters, (x,))
        y.sum().backward()
        return y

    for _ in range(2):
        assert type(step(many, dict(layer.named_parameters()))) is Tensor
        parameters = {name: value.detach() for name, value in layer.named_parameters()}
        with FakeTensorMode() as mode:
            fakes = {name: mode.from_tensor(value).requires_grad_() for name, value in parameters.items()}
            found = step(mode.from_tensor(many), fakes)
            assert found.shape == (500, OUT)
            assert fakes["pera_A"].grad.shape == (RANK, IN)
            with torch.no_grad():
                few = torch.func.functional_call(layer.eval(), fakes, (mode.from_tensor(x),))
            assert few.shape == (2, OUT)
        layer.train()
