"""Training steps of a tiny Llama in four processes, alone and in two groups of two; what they moved and held."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile

from benchmarks.model_shapes import COLUMN, ROW, ModelShapes, shapes_of
from pera_lightning import PeraConfig, inject_adapter
from pera_lightning.layers.parallelize import parallelize_adapted
from pera_lightning.models.gradient_checkpointing import enable_gradient_checkpointing
from pera_lightning.models.parallel.parallel_causal_lm import shard_blocks
from tests.support.collectives import Collectives
from tests.support.models import tiny_llama

# Sizes that two and four do not divide, and fewer rows of A than processes. They do divide the columns of A in o_proj,
# two those of most.
ODD = {
    "hidden_size": 30,
    "head_dim": 4,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "intermediate_size": 45,
    "vocab_size": 61,
}
WIDE = {"hidden_size": 128, "intermediate_size": 512, "vocab_size": 4096}
ROWS, TOKENS = 2, 5


def make(config: PeraConfig, checkpointing: bool = False, **sizes: int) -> Any:
    torch.manual_seed(0)
    model: Any = tiny_llama(**sizes).to(torch.bfloat16).requires_grad_(False)
    if checkpointing:
        enable_gradient_checkpointing(model)
    inject_adapter(model, config)
    return model.train()


def shapes(config: PeraConfig, **sizes: int) -> ModelShapes:
    model = make(config, **sizes)
    return shapes_of(model, model.model.layers)


def step(model: Any, rows: int = ROWS, tokens: int = TOKENS) -> None:
    config = getattr(model, "module", model).config
    x = torch.ones(rows, tokens, config.hidden_size, dtype=torch.bfloat16, requires_grad=True)
    model(inputs_embeds=x, use_cache=False).logits.float().square().mean().backward()


def counted(model: Any) -> dict[tuple[str, int], int]:
    with Collectives() as collectives:
        step(model)
    return dict(collectives.seen)


def held(model: nn.Module) -> dict[str, int]:
    """Bytes of what this process has after a step of AdamW."""
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    optimizer.step()
    states = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    frozen = [value for value in model.parameters() if not value.requires_grad]
    return {
        "base": storages([*frozen, *model.buffers()]),
        "trained": storages(trained),
        "gradients": storages(value.grad for value in trained if value.grad is not None),
        "optimizer": storages(states),
    }


def storages(values: Iterable[Tensor]) -> int:
    local = [value.to_local() if isinstance(value, DTensor) else value for value in values]
    distinct = {value.untyped_storage()._cdata: value.untyped_storage().nbytes() for value in local}
    return sum(distinct.values())


def peak(model: Any) -> int:
    """The most bytes that a step allocates."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step(model, 1, 1)
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def ddp(config: PeraConfig, mesh: DeviceMesh) -> dict[str, Any]:
    model = DistributedDataParallel(make(config, **ODD), process_group=mesh.get_group())
    # DDP makes its buckets anew after the first step.
    for _ in range(2):
        step(model)
        model.zero_grad()
    found = {"moved": counted(model), "buckets": model._get_ddp_logging_data()["rebuilt_bucket_sizes"]}
    return {**found, **held(model.module)}


def fsdp2(config: PeraConfig, mesh: DeviceMesh, checkpointing: bool) -> dict[str, Any]:
    model = make(config, checkpointing, **ODD)
    shard_blocks(model, mesh)
    moved = counted(model)
    return {"moved": moved, **held(model)}


def fsdp2_peak(config: PeraConfig, mesh: DeviceMesh) -> int:
    model = make(config, **WIDE)
    shard_blocks(model, mesh)
    # The first step has gradients and buffers to make.
    step(model, 1, 1)
    return peak(model)


def tensor_parallel(config: PeraConfig, mesh: DeviceMesh, checkpointing: bool) -> dict[str, Any]:
    model = make(config, checkpointing)
    for block in model.model.layers:
        for part in (block.self_attn, block.mlp):
            names = [name for name, _ in part.named_children()]
            plan: dict[str, Any] = {name: ColwiseParallel() for name in COLUMN if name in names}
            plan |= {name: RowwiseParallel() for name in ROW if name in names}
            parallelize_adapted(part, mesh["tensor"], plan)
    shard_blocks(model, mesh["data"])
    moved = counted(model)
    return {"moved": moved, **held(model)}


CONFIGS = {"pera": PeraConfig(3), "lora": PeraConfig(3, 1)}


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=4)
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    found: dict[Any, Any] = {}
    for ranks, mesh in ((2, square["data"]), (4, init_device_mesh("cpu", (4,)))):
        for name, config in CONFIGS.items():
            found["ddp", ranks, name] = ddp(config, mesh)
            for checkpointing in (False, True):
                found["fsdp2", ranks, name, checkpointing] = fsdp2(config, mesh, checkpointing)
        found["rank", ranks] = mesh.get_local_rank()
    found["peak"] = fsdp2_peak(CONFIGS["pera"], square["data"])
    for checkpointing in (False, True):
        found["tensor_parallel", checkpointing] = tensor_parallel(CONFIGS["pera"], square, checkpointing)
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()
