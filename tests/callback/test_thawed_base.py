"""A step that would change the frozen base is refused, and the others do not pay for it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pera_lightning import PeraConfig, inject_adapter
from pera_lightning.callback.thawed_base import ThawedBaseCheck
from pera_lightning.errors import TrainingError
from tests.support.models import Regressor

X = torch.ones(2, 6)


class Counting(Regressor):
    """Counts the walks over its parameters."""

    walks = 0

    def named_parameters(self, *args: object, **options: object) -> object:
        self.walks += 1
        return super().named_parameters(*args, **options)


@pytest.fixture
def module() -> Counting:
    module = Counting()
    inject_adapter(module, PeraConfig(rank=2))
    module(X).sum().backward()
    module.walks = 0
    return module


def test_a_large_model_is_walked_once(module: Counting) -> None:
    check, optimizer = ThawedBaseCheck(), torch.optim.SGD([*nn.Module.named_parameters(module)], lr=0.1)
    for _ in range(3):
        check.check(module, optimizer)
    assert module.walks == 1
    # In another run it is looked at again.
    check.forget()
    check.check(module, optimizer)
    assert module.walks == 2


def test_a_base_that_thaws_later(module: Counting) -> None:
    check, optimizer = ThawedBaseCheck(), torch.optim.SGD([*nn.Module.named_parameters(module)], lr=0.1)
    check.check(module, optimizer)
    module.net[2].base_layer.bias.requires_grad_(True)
    check.check(module, optimizer)
    module(X).sum().backward()
    for _ in range(2):
        with pytest.raises(TrainingError, match=r"1 base parameters with gradients, e.g. 'net.2.base_layer.bias'"):
            check.check(module, optimizer)


def test_tensors_of_the_strategy_are_not_the_bases(module: Counting) -> None:
    flat = nn.Parameter(torch.zeros(3))
    flat.grad = torch.zeros(3)
    check, optimizer = ThawedBaseCheck(), torch.optim.SGD([flat], lr=0.1)
    for _ in range(2):
        check.check(module, optimizer)
    assert module.walks == 1
