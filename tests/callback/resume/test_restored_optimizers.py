from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pera_lightning.callback.resume.restored_optimizers import held_problem, optimizer_problem, own_groups
from pera_lightning.callback.resume.restored_training import optimizers_problem

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
    "LBFGS": {},
    **({"Muon": {}} if hasattr(torch.optim, "Muon") else {}),
}


def made(kind: str, **options: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    # torch's Muon takes matrices alone.
    module = nn.Sequential(nn.Linear(4, 3, bias=kind != "Muon"), nn.Linear(3, 5, bias=kind != "Muon"))
    return module, getattr(torch.optim, kind)(module.parameters(), lr=0.01, **options)


def held_by(kind: str, **options: Any) -> dict[str, Any]:
    """The state after two steps, in which a layer never moved."""
    module, optimizer = made(kind, **options)

    def closure() -> float:
        optimizer.zero_grad()
        loss = module[0](torch.randn(7, 4)).square().sum()
        loss.backward()
        return loss.item()

    for _ in range(2):
        optimizer.step(closure)
    return copy.deepcopy(optimizer.state_dict())


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS.items())
def test_whole_states_of_all_optimizers_of_torch(kind: str, options: dict[str, Any]) -> None:
    for given in ({}, options):
        held, (_, optimizer) = held_by(kind, **given), made(kind, **given)
        before = own_groups(optimizer)
        assert held_problem(optimizer, held) is None
        optimizer.load_state_dict(held)
        assert optimizer_problem(optimizer, before) is None
    state = next(iter(held["state"].values()))
    del state[next(iter(state))]
    assert kind == "LBFGS" or "usually" in str(held_problem(made(kind, **options)[1], held))


@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_options_that_change_in_a_run_may_have_changed(kind: str) -> None:
    held, (_, optimizer) = held_by(kind), made(kind)
    held["param_groups"][0] |= {"lr": 0, "weight_decay": 0.3, "initial_lr": 0.5, "mine": object()}
    assert held_problem(optimizer, held) is None
    held["param_groups"][0]["lr"] = torch.tensor(0.01)
    assert held_problem(optimizer, held) is None


def group(name: str, *values: Any) -> list[Callable[[dict[str, Any]], object]]:
    return [lambda held, value=value: held["param_groups"][0].update({name: value}) for value in values]  # type: ignore[misc]


def state(name: str, *values: Any) -> list[Callable[[dict[str, Any]], object]]:
    def change(held: dict[str, Any], value: Any) -> None:
        for entry in held["state"].values():
            entry[name] = value(entry[name]) if callable(value) else value

    return [lambda held, value=value: change(held, value) for value in values]  # type: ignore[misc]


MOMENTS = (
    lambda value: torch.zeros(1).expand(value.shape),
    lambda value: torch.zeros(99).as_strided(value.shape, (1,) * value.dim()) if value.dim() > 1 else None,
    lambda value: value.to_sparse(),
    lambda value: value.to("meta"),
    lambda value: value.long(),
    lambda value: value.bool(),
    lambda value: value.to(torch.complex64),
    lambda value: value * float("nan"),
    lambda value: value.double() + 1e300,
    lambda value: value[None],
    "x",
    None,
)
STEPS = (-1, -5, 1j, float("nan"), float("inf"), True, "x", 1 << 60)
TENSORS_OF_STEPS = (
    torch.tensor(255, dtype=torch.uint8),
    torch.tensor(True),
    torch.ones((), device="meta"),
    torch.ones(2),
)
WRONG = {
    "exp_avg": state("exp_avg", *MOMENTS),
    "exp_avg_sq": state("exp_avg_sq", *MOMENTS, lambda value: -value - 1),
    "step": state("step", *STEPS, *(torch.tensor(step) for step in STEPS[:5]), *TENSORS_OF_STEPS),
    "lr": group("lr", -1.0, 1e308, 1j, True, "0.01", float("inf"), torch.ones(2), torch.tensor(1j), None, 10**400),
    "betas": group("betas", (1.0, 1.0), (2, 2), (True, False), (1j, 1j), 2, (0.9,), (torch.tensor(0.9),) * 2),
    "eps": group("eps", -1.0, 1j, torch.zeros(3), float("nan"), None),
    "weight_decay": group("weight_decay", 1e300, -1, float("nan")),
    "initial_lr": group("initial_lr", "x", float("nan")),
    **{name: group(name, True, "x", 1) for name in ("maximize", "amsgrad", "capturable", "differentiable")},
    **{name: group(name, "x", 1) for name in ("foreach", "fused")},
    "decoupled_weight_decay": group("decoupled_weight_decay", True, "x", 1),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_no_step_could_be_made_with_is_named(name: str) -> None:
    for number, change in enumerate(WRONG[name]):
        held, (_, optimizer) = held_by("Adam"), made("Adam")
        optimizer.param_groups[0]["initial_lr"] = 0.01
        change(held)
        problem = str(held_problem(optimizer, held))
        assert any(word in problem for word in (f"'s {name} ", "cannot step")), (number, problem)


def test_a_state_shares_no_memory() -> None:
    held, (_, optimizer) = held_by("Adam"), made("Adam")
    for entry in held["state"].values():
        entry["exp_avg"] = entry["exp_avg_sq"]
    assert "shares its memory" in str(held_problem(optimizer, held))


def test_a_flag_is_that_of_the_run() -> None:
    held, (_, optimizer) = held_by("SGD", momentum=0.9, nesterov=True), made("SGD", momentum=0.9)
    assert "nesterov is True, where the run's own is False" in str(held_problem(optimizer, held))
    # As of an older torch.
    del held["param_groups"][0]["nesterov"]
    assert held_problem(optimizer, held) is None


@pytest.mark.parametrize(
    ("first", "then"), [("Adam", "SGD"), ("SGD", "AdamW"), ("RMSprop", "Adam"), ("AdamW", "Adagrad")]
)
def test_the_state_of_another_optimizer(first: str, then: str) -> None:
    assert "another optimizer" in str(held_problem(made(then)[1], held_by(first)))


class Mine(torch.optim.Optimizer):
    """Of an optimizer of others only the tensors are known."""


def test_an_optimizer_of_others() -> None:
    optimizer = Mine(nn.Linear(4, 3).parameters(), {"lr": 0.1})
    assert held_problem(optimizer, {"anything": [torch.full((2,), float("inf")), -1]}) is None
    assert "strides" in str(held_problem(optimizer, {"anything": [torch.zeros(1).expand(3)]}))


@pytest.mark.parametrize("bits", [8, 32])
def test_the_optimizers_of_bitsandbytes(bits: int) -> None:
    optim = pytest.importorskip("bitsandbytes").optim
    optimizer = (optim.AdamW8bit if bits == 8 else optim.AdamW)(nn.Linear(128, 64).parameters(), lr=0.01)
    held = copy.deepcopy(optimizer.state_dict())
    kept = {"state1": torch.ones(64, 128, dtype=torch.uint8), "qmap1": -torch.ones(256), "absmax1": torch.ones(32)}
    held["state"] = {0: {"step": 3, **(kept if bits == 8 else {"state1": torch.ones(64, 128)})}}
    assert held_problem(optimizer, held) is None
    held["state"][0]["step"] = -1
    assert "step is -1" in str(held_problem(optimizer, held))
    held["state"][0] |= {"step": 3, "qmap1": torch.tensor([float("nan")])}
    assert "qmap1 holds values that are not finite" in str(held_problem(optimizer, held))
    del held["state"][0]["qmap1"]
    held["param_groups"][0]["betas"] = (2.0, 0.9)
    assert "cannot step" in str(held_problem(optimizer, held))


def test_each_optimizer_has_its_state() -> None:
    _, optimizer = made("Adam")
    assert optimizers_problem([optimizer], [held_by("Adam")]) is None
    assert "holds 0 states of optimizers, and the run has 1" in str(optimizers_problem([optimizer], []))
    assert "2 states" in str(optimizers_problem([optimizer], [held_by("Adam")] * 2))
    assert optimizers_problem([optimizer], None) is not None
    for damaged in ({}, {"state": {}, "param_groups": 5}, {"state": {}, "param_groups": []}, 5):
        assert optimizers_problem([optimizer], [damaged]) is not None
    held = held_by("Adam")
    held["state"]["x"] = held["state"].pop(0)
    assert "states of parameters" in str(optimizers_problem([optimizer], [held]))
