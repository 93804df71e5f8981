"""Layers that two processes share by columns and rows compute, and learn, what the whole ones do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, SequenceParallel

from pera_lightning import PeraConfig, inject_adapter
from pera_lightning.errors import TargetError
from pera_lightning.functional.distributed import whole
from pera_lightning.injection import adapted_layers
from pera_lightning.layers.parallelize import parallelize_adapted
from tests.support.models import randomise_adapter

TARGETS = ["0", "2"]
CONFIGS = {
    "order 1": PeraConfig(3, 1, target_modules=TARGETS),
    "order 2": PeraConfig(3, target_modules=TARGETS),
    "order 3": PeraConfig(2, order=3, terms="square", target_modules=TARGETS),
    "auto scale": PeraConfig(3, coefficient_scale="auto", alpha=7, target_modules=TARGETS),
    "biases": PeraConfig(3, bias="adapted", target_modules=TARGETS),
    "half": PeraConfig(3, target_modules=TARGETS),
    "one only": PeraConfig(3, target_modules=["2"]),
    "autocast": PeraConfig(3, target_modules=TARGETS),
}
# Sums over 16 inputs, in another order; in half precision the partial sums of a row-wise layer are rounded too.
TOLERANCES = {"half": {"rtol": 2e-2, "atol": 2e-2}, "autocast": {"rtol": 2e-2, "atol": 2e-2}}
EXACT = {"rtol": 1e-12, "atol": 1e-13}
DTYPES = {"half": torch.bfloat16, "autocast": torch.float32}
PLAN: dict[str, ParallelStyle] = {"0": ColwiseParallel(), "2": RowwiseParallel()}


def make_model(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 14), nn.Tanh(), nn.Linear(14, 6))
    model = model.to(DTYPES.get(name, torch.float64))
    inject_adapter(model, CONFIGS[name])
    randomise_adapter(model)
    return model.train()


def step(model: nn.Module, name: str) -> dict[str, Tensor]:
    """Output and gradients; counts of the collectives of the forward pass come as tensors too."""
    dtype = DTYPES.get(name, torch.float64)
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(3)).to(dtype).requires_grad_()
    with CommDebugMode() as forward, torch.autocast("cpu", torch.bfloat16, enabled=name == "autocast"):
        y = model(x)
    with CommDebugMode() as backward:
        y.double().square().sum().backward()
    grads = {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
    for value in model.parameters():
        # An optimizer steps both together.
        assert value.grad is None or getattr(value.grad, "placements", ()) == getattr(value, "placements", ())
    counts = {"forward": forward.get_total_counts(), "backward": backward.get_total_counts()}
    # Copies, for results of collectives that are waited for only when they are used.
    return {
        "output": y.detach().clone(),
        "input's gradient": x.grad.clone(),
        **{key: whole(grad).clone() for key, grad in grads.items()},
        **{f"collectives {key}": torch.tensor(count) for key, count in counts.items()},
    }


def work(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    found: dict[str, Any] = {name: step(parallelize_adapted(make_model(name), mesh, PLAN), name) for name in CONFIGS}
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(12, 14), nn.Tanh(), nn.Linear(14, 6)).double()
    found["base alone"] = step(parallelize_adapted(plain, mesh, PLAN), "base alone")
    model = parallelize_adapted(make_model("order 2"), mesh, PLAN).eval()
    with torch.no_grad():
        found["evaluation"] = model(torch.ones(2, 12, dtype=torch.float64)).clone()
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("tensor")
    # As daemons, so that a test that runs out of time takes them with it.
    multiprocessing.spawn(work, (str(folder),), nprocs=2, daemon=True)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", CONFIGS)
def test_output_and_gradients(found: list[dict[str, Any]], name: str) -> None:
    expected = step(make_model(name), name)
    for key, value in expected.items():
        if not key.startswith("collectives"):
            for rank in range(2):
                torch.testing.assert_close(found[rank][name][key], value, **TOLERANCES.get(name, EXACT))
            assert torch.equal(found[0][name][key], found[1][name][key])
    assert found[0][name].keys() == expected.keys()
    assert any(key.endswith("pera_A") for key in expected)


def test_adapters_add_no_communication_going_forward(found: list[dict[str, Any]]) -> None:
    base, adapted = (found[0][name] for name in ("base alone", "order 2"))
    assert adapted["collectives forward"] == base["collectives forward"] == 1
    # The input's gradient, as for the base; and of both layers those of two replicated factors.
    assert base["collectives backward"] == 1
    assert adapted["collectives backward"] == 1 + 2 * 2


def test_evaluation(found: list[dict[str, Any]]) -> None:
    with torch.no_grad():
        expected = make_model("order 2").eval()(torch.ones(2, 12, dtype=torch.float64))
    torch.testing.assert_close(found[0]["evaluation"], expected, **EXACT)


@pytest.fixture
def mesh(tmp_path: Path) -> Any:
    """Of this process alone."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def test_placements(mesh: DeviceMesh) -> None:
    model = parallelize_adapted(make_model("order 2"), mesh, PLAN)
    placements = [
        [factor.placements[0] for factor in layer.adapter().values()]  # type: ignore[attr-defined]
        for _, layer in adapted_layers(model)
    ]
    assert placements == [[Replicate(), Shard(0), Replicate()], [Shard(1), Replicate(), Replicate()]]


def test_refuses_another_style(mesh: DeviceMesh) -> None:
    with pytest.raises(TargetError, match="got:      SequenceParallel"):
        parallelize_adapted(make_model("order 2"), mesh, {"0": SequenceParallel()})


def test_refuses_a_base_that_is_no_plain_linear_layer(mesh: DeviceMesh) -> None:
    from pera_lightning import quantize_model

    model = nn.Sequential(nn.Linear(64, 64))
    quantize_model(model, "nf4")
    inject_adapter(model, PeraConfig(2, target_modules=["0"]))
    with pytest.raises(TargetError, match="got:      nf4"):
        parallelize_adapted(model, mesh, {"0": ColwiseParallel()})
