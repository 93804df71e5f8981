from __future__ import annotations

import math
import sys
from typing import Any

import pytest
import torch
from torch import nn

from pera_lightning import PeraConfig, inject_adapter, parameter_groups
from pera_lightning.errors import ConfigError
from pera_lightning.models.optimization import make_optimizer, warmup_schedule
from tests.support.models import tiny_llama

RATES = {"learning_rate": 0.1, "b_lr_factor": 4.0, "h_lr_factor": 30.0, "weight_decay": 0.01}


def rates(schedule: Any, warmup_ratio: float, total_steps: float, steps: int) -> list[list[float]]:
    """The learning rates of two groups over the steps."""
    weights = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": weights[0], "lr": 1.0}, {"params": weights[1], "lr": 3.0}])
    scheduler = warmup_schedule(optimizer, schedule=schedule, warmup_ratio=warmup_ratio, total_steps=total_steps)
    seen = []
    for _ in range(steps):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return seen


@pytest.mark.parametrize(
    ("schedule", "after"),
    [
        ("linear", lambda share: 1 - share),
        ("cosine", lambda share: 0.5 * (1 + math.cos(math.pi * share))),
        ("constant", lambda share: 1.0),
    ],
)
@pytest.mark.parametrize("warmup_ratio", [0.0, 0.25])
def test_schedules(schedule: str, after: Any, warmup_ratio: float) -> None:
    total = 20
    warmup = round(warmup_ratio * total)
    for step, (first, second) in enumerate(rates(schedule, warmup_ratio, total, total + 1)):
        expected = step / warmup if step < warmup else after((step - warmup) / (total - warmup))
        assert first == pytest.approx(expected, abs=1e-9)
        assert second == pytest.approx(3 * expected, abs=1e-9)


def test_steps_of_warmup_need_no_end() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = warmup_schedule(optimizer, schedule="constant", warmup_ratio=0.0, warmup_steps=4, total_steps=math.inf)
    assert [scheduler.lr_lambdas[0](step) for step in (0, 1, 4, 9)] == [0.0, 0.25, 1.0, 1.0]


def test_a_single_step_of_warmup() -> None:
    assert rates("linear", 0.5, 1, 3) == [[0.0, 0.0], [1.0, 3.0], [0.0, 0.0]]


# Lightning says -1 for data without a length, infinity for max_epochs=-1.
@pytest.mark.parametrize("total_steps", [math.inf, -1])
def test_training_without_an_end(total_steps: float) -> None:
    assert rates("constant", 0.0, total_steps, 3) == [[1.0, 3.0]] * 3
    for schedule, warmup_ratio in (("linear", 0.0), ("cosine", 0.0), ("constant", 0.1)):
        with pytest.raises(ConfigError, match=r"set trainer\.max_steps"):
            rates(schedule, warmup_ratio, total_steps, 1)


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit"])
def test_optimizers_keep_the_groups(name: Any) -> None:
    model = tiny_llama()
    inject_adapter(model, PeraConfig(rank=2))
    groups = parameter_groups(model.named_parameters(), **RATES)
    optimizer = make_optimizer(name, groups, 0.1)
    found = [(group["name"], group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    assert found == [("pera_A", 0.1, 0.01), ("pera_B", 0.4, 0.01), ("pera_h", 3.0, 0.0)]
    warmup_schedule(optimizer, schedule="linear", warmup_ratio=0.5, total_steps=10)


def test_eight_bit_moments() -> None:
    """A step is close to AdamW's, and the moments of all but small tensors take a byte a value."""
    torch.manual_seed(0)
    start, gradient = torch.randn(64, 128), torch.randn(64, 128)
    found = {}
    for name in ("adamw", "adamw_8bit"):
        parameter = nn.Parameter(start.clone())
        optimizer = make_optimizer(name, [{"params": [parameter], "weight_decay": 0.01}], 0.01)
        for _ in range(3):
            parameter.grad = gradient.clone()
            optimizer.step()
        found[name] = parameter.detach()
        moments = [value for value in optimizer.state[parameter].values() if torch.is_tensor(value)]
        taken = sum(value.numel() * value.element_size() for value in moments if value.numel() > 1)
        assert taken == 2 * 4 * start.numel() if name == "adamw" else taken < 2.6 * start.numel()
    change = (found["adamw"] - start).norm()
    assert (found["adamw_8bit"] - found["adamw"]).norm() < 0.05 * change


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to page from")
def test_paging_needs_a_gpu() -> None:
    parameter = nn.Parameter(torch.randn(3))
    with pytest.warns(UserWarning, match="no CUDA device to page from: paged_adamw_8bit runs as adamw_8bit") as seen:
        optimizer = make_optimizer("paged_adamw_8bit", [{"params": [parameter]}], 0.01)
    assert len(seen) == 1
    assert not optimizer.is_paged
    parameter.grad = torch.ones(3)
    optimizer.step()


def test_eight_bit_without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"pera-lightning\[quant\]"):
        make_optimizer("adamw_8bit", [{"params": [nn.Parameter(torch.randn(3))]}], 0.01)
