from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pera_lightning.callback.resume.restored_optimizers import optimizer_problem

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "Adadelta": {},
    "Adafactor": {},
    "Adagrad": {},
    "Adam": {"amsgrad": True},
    "AdamW": {"betas": (0.8, 0.9)},
    "Adamax": {},
    "ASGD": {},
    "NAdam": {},
    "RAdam": {},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "Rprop": {},
    "SGD": {"momentum": 0.9, "nesterov": True},
}


def stepped(kind: str, **options: Any) -> torch.optim.Optimizer:
    """An optimizer that has gone on from the state of another one after two steps; a layer never moved."""
    module = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 5))
    optimizers = [getattr(torch.optim, kind)(module.parameters(), lr=0.01, **options) for _ in range(2)]
    for _ in range(2):
        module[0](torch.randn(7, 4)).square().sum().backward()
        optimizers[0].step()
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    return optimizers[1]


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS.items())
def test_whole_states_of_all_optimizers_of_torch(kind: str, options: dict[str, Any]) -> None:
    assert optimizer_problem(stepped(kind)) is None
    optimizer = stepped(kind, **options)
    assert optimizer_problem(optimizer) is None
    state = next(iter(optimizer.state.values()))
    del state[next(iter(state))]
    assert "usually" in str(optimizer_problem(optimizer))


def test_a_learning_rate_that_is_a_tensor() -> None:
    optimizer = stepped("AdamW")
    optimizer.param_groups[0]["lr"] = torch.tensor(0.01)
    assert optimizer_problem(optimizer) is None
    optimizer.param_groups[0]["lr"] = "0.01"
    assert "lr" in str(optimizer_problem(optimizer))


@pytest.mark.parametrize(
    ("first", "then"), [("Adam", "SGD"), ("SGD", "AdamW"), ("RMSprop", "Adam"), ("AdamW", "Adagrad")]
)
def test_the_state_of_another_optimizer(first: str, then: str) -> None:
    optimizer = getattr(torch.optim, then)(nn.Linear(4, 3).parameters(), lr=0.01)
    given = getattr(torch.optim, first)(nn.Linear(4, 3).parameters(), lr=0.01)
    optimizer.load_state_dict(given.state_dict())
    assert "another optimizer" in str(optimizer_problem(optimizer))
