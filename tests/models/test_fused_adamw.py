"""AdamW in one kernel per group: chosen where it can be, the same steps, and checkpoints that go either way."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pera_lightning import PeraCallback, PeraCausalLM, PeraConfig, adapter_state_dict, inject_adapter, parameter_groups
from pera_lightning.models import optimization
from pera_lightning.models.optimization import make_optimizer
from tests.support.causal_fits import loader, make_trainer, save_llama, unequal_batches
from tests.support.models import randomise_adapter, tiny_llama, token_ids

GROUPS = {"pera_A": 0.01, "pera_B": 0.04, "pera_h": 0.1}


class Counter(TorchDispatchMode):
    """Counts the fused kernels."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func == torch.ops.aten._fused_adamw_.default
        return func(*args, **(kwargs or {}))


@pytest.fixture
def fusing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CPU count as a device that gains by it."""
    monkeypatch.setattr(optimization, "FUSING", {"cpu"})


def adapted() -> nn.Module:
    torch.manual_seed(3)
    model = tiny_llama()
    inject_adapter(model, PeraConfig(rank=2))
    randomise_adapter(model, 0.1)
    return model


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    groups = parameter_groups(
        model.named_parameters(), learning_rate=0.01, b_lr_factor=4, h_lr_factor=10, weight_decay=0.1
    )
    return make_optimizer("adamw", groups, 0.01)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    model(token_ids()).logits.square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def choice(optimizer: torch.optim.Optimizer) -> set[bool | None]:
    return {group["fused"] for group in optimizer.param_groups}


def close(one: nn.Module, other: nn.Module) -> None:
    torch.testing.assert_close(adapter_state_dict(one), adapter_state_dict(other), rtol=1e-5, atol=1e-6)


def test_the_same_steps_in_one_kernel_per_group(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, fused = adapted(), adapted()
    optimizers = [optimizer_of(plain)]
    monkeypatch.setattr(optimization, "FUSING", {"cpu"})
    optimizers.append(optimizer_of(fused))
    assert [choice(optimizer) for optimizer in optimizers] == [{None}, {True}]
    for seed in range(4):
        step(plain, optimizers[0], seed)
        with Counter() as counter:
            step(fused, optimizers[1], seed)
        assert counter.count == len(GROUPS)
    close(fused, plain)
    assert {group["name"]: group["lr"] for group in optimizers[1].param_groups} == pytest.approx(GROUPS)


@pytest.mark.parametrize("later", ["fused", "plain"])
def test_a_state_goes_into_the_other_kind(later: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(kind: str, model: nn.Module) -> torch.optim.Optimizer:
        monkeypatch.setattr(optimization, "FUSING", {"cpu"} if kind == "fused" else set())
        return optimizer_of(model)

    first = adapted()
    optimizer = made("plain" if later == "fused" else "fused", first)
    for seed in range(3):
        step(first, optimizer, seed)
    rest = copy.deepcopy(first)
    other = made(later, rest)
    # Loaded as it is, both would step the same moments.
    state = copy.deepcopy(optimizer.state_dict())
    other.load_state_dict(state)
    assert state["param_groups"] == optimizer.state_dict()["param_groups"]
    assert choice(other) == ({True} if later == "fused" else {None})
    for seed in range(3, 6):
        step(first, optimizer, seed)
        step(rest, other, seed)
    close(rest, first)


class Sharded(nn.Parameter):
    """Of another type than a plain parameter, like torch's DTensor."""


@pytest.mark.usefixtures("fusing")
def test_where_it_cannot_be() -> None:
    plain, sharded = nn.Parameter(torch.zeros(2)), Sharded(torch.zeros(2))
    assert choice(make_optimizer("adamw", [{"params": [plain]}], 0.1)) == {True}
    assert choice(make_optimizer("adamw", [{"params": [plain]}, {"params": [sharded]}], 0.1)) == {None}
    on_meta = nn.Parameter(torch.zeros(2, device="meta"))
    assert choice(make_optimizer("adamw", [{"params": [plain, on_meta]}], 0.1)) == {None}
    assert choice(make_optimizer("adamw", [{"params": [plain]}], 0.1, scaled_gradients=True)) == {None}


def fit(folder: Path, model: str, batches: int = 6, **options: Any) -> PeraCausalLM:
    torch.manual_seed(5)
    module = PeraCausalLM(model, learning_rate=0.01, b_lr_factor=4.0, schedule="constant")
    checkpoint = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=3, save_top_k=-1)
    path = options.pop("ckpt_path", None)
    settings = {"enable_checkpointing": True, "gradient_clip_val": 0.5, "max_steps": batches, "max_epochs": -1}
    settings["limit_val_batches"] = 0
    trainer = make_trainer(folder, PeraCallback(rank=2, dropout=0.1), checkpoint, **{**settings, **options})
    data = loader(unequal_batches() * 3)
    trainer.fit(module, data, data, ckpt_path=path)
    return module


@pytest.mark.usefixtures("fusing")
@pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")
def test_an_interrupted_run_goes_on_bit_by_bit(tmp_path: Path) -> None:
    model = save_llama(tmp_path / "llama")
    whole = fit(tmp_path / "whole", model, 9)
    rest = fit(tmp_path / "rest", model, 9, ckpt_path=tmp_path / "whole" / "step=6.ckpt")
    assert choice(rest.trainer.optimizers[0]) == {True}
    ours, theirs = adapter_state_dict(rest.model), adapter_state_dict(whole.model)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


@pytest.mark.usefixtures("fusing")
def test_a_scaler_can_clip(tmp_path: Path) -> None:
    """Lightning refuses to clip where a fused optimizer takes the scale out of the gradients."""
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=8.0))
    module = fit(tmp_path / "run", save_llama(tmp_path / "llama"), plugins=[plugin])
    assert choice(module.trainer.optimizers[0]) == {None}
