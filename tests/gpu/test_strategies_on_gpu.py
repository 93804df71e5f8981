"""DDP, FSDP2 and tensor parallelism in one process with the communication library of the device."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

from pera_lightning import PeraConfig, inject_adapter, parallelize_adapted
from pera_lightning.functional.distributed import whole
from tests.support.models import randomise_adapter, tiny_llama, token_ids
from tests.support.pretrained import save_pretrained
from tests.support.sharded import fit_language_model, without_parallelism

BACKENDS = {"cuda": "nccl", "cpu": "gloo"}
# Of NCCL's process group, about the device that it takes.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch.distributed")


@pytest.fixture(autouse=True)
def _no_group_is_left() -> Iterator[None]:
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("strategies")
    torch.manual_seed(0)
    save_pretrained(folder / "model")
    rows = [{"instruction": f"say {letter}", "input": "", "output": 3 * letter} for letter in "abcdefghijkl"]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.mark.parametrize("strategy", [DDPStrategy, ModelParallelStrategy], ids=["DDP", "FSDP2"])
@pytest.mark.parametrize("quantization", [None, "nf4-dq"])
@pytest.mark.filterwarnings("ignore:PERA. the output head 'model.lm_head' is frozen:UserWarning")
def test_fits_as_without_it(
    folder: Path, tmp_path: Path, device: torch.device, accelerator: str, strategy: Any, quantization: Any
) -> None:
    options = {"accelerator": accelerator, "quantization": quantization, "max_epochs": 1}
    files = (folder / "model", folder / "rows.jsonl")
    # Before there is a process group, which a plain fit would take for its own.
    expected = without_parallelism(tmp_path / "plain", *files, **options)
    made = strategy(process_group_backend=BACKENDS[device.type])
    found = fit_language_model(tmp_path / "one", *files, strategy=made, **options)
    assert found["losses"].keys() == expected["losses"].keys()
    for name, value in expected["adapter"].items():
        torch.testing.assert_close(found["adapter"][name].cpu(), value.cpu(), rtol=1e-4, atol=1e-5)


def test_tensor_parallelism(device: torch.device, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = tiny_llama().requires_grad_(False)
    inject_adapter(model, PeraConfig(3))
    randomise_adapter(model)
    model = model.to(device).train()
    ids = token_ids().to(device)
    expected = gradients(model, ids)
    where = {"init_method": f"file://{tmp_path / 'meeting'}", "rank": 0, "world_size": 1}
    torch.distributed.init_process_group(BACKENDS[device.type], **where)
    mesh = init_device_mesh(device.type, (1,))
    for block in model.model.layers:
        plan = {f"self_attn.{name}": ColwiseParallel() for name in ("q_proj", "k_proj", "v_proj")}
        plan |= {f"mlp.{name}": ColwiseParallel() for name in ("gate_proj", "up_proj")}
        plan |= {"self_attn.o_proj": RowwiseParallel(), "mlp.down_proj": RowwiseParallel()}
        parallelize_adapted(block, mesh, plan)
    for name, value in gradients(model, ids).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


def gradients(model: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    model(input_ids=ids, labels=ids).loss.backward()
    found = {name: whole(value.grad).clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad(set_to_none=True)
    return found
