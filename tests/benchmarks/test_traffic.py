"""Bytes that strategies move and hold, counted from shapes against bytes measured in two and four processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import multiprocessing

from benchmarks.model_shapes import shapes_of
from benchmarks.sharded_memory import ShardedMemory, ddp_memory, fsdp2_memory
from benchmarks.traffic import Collective, ddp_traffic, fsdp2_traffic, payload, tensor_parallel_traffic
from pera_lightning import PeraConfig, inject_adapter, quantize_model
from pera_lightning.analysis.memory import quantizable_layers
from tests.support.models import tiny_llama
from tests.support.processes import forkserver
from tests.support.sharded_steps import CONFIGS, ODD, ROWS, TOKENS, WIDE, shapes, work

Found = list[dict[Any, Any]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What each of four processes measured."""
    folder = tmp_path_factory.mktemp("processes")
    forkserver()
    multiprocessing.start_processes(work, (str(folder),), nprocs=4, daemon=True, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt") for rank in range(4)]


def moved(collectives: Iterable[Collective]) -> dict[tuple[str, int], int]:
    return dict(Counter((collective.kind, collective.payload) for collective in collectives))


def parts(memory: ShardedMemory) -> dict[str, int]:
    return {name: getattr(memory.held, name) for name in ("base", "trained", "gradients", "optimizer")}


def measured(result: dict[str, Any]) -> dict[str, int]:
    return {name: result[name] for name in ("base", "trained", "gradients", "optimizer")}


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("adapter", CONFIGS)
def test_ddp(found: Found, ranks: int, adapter: str) -> None:
    """Only the adapter's gradients travel, and the few bytes of the buffers."""
    counted = shapes(CONFIGS[adapter], **ODD)
    memory = ddp_memory(counted)
    for process in found:
        result = process["ddp", ranks, adapter]
        assert result["moved"] == moved(ddp_traffic(counted, ranks))
        assert measured(result) == parts(memory)
        assert sum(map(int, result["buckets"].split(","))) == memory.reducing


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("adapter", CONFIGS)
def test_fsdp2(found: Found, ranks: int, adapter: str, checkpointing: bool) -> None:
    """Checkpointing gathers nothing more."""
    counted = shapes(CONFIGS[adapter], **ODD)
    for process in found:
        result = process["fsdp2", ranks, adapter, checkpointing]
        assert result["moved"] == moved(fsdp2_traffic(counted, ranks))
        assert measured(result) == parts(fsdp2_memory(counted, ranks, process["rank", ranks]))


def test_the_peak_of_fsdp2(found: Found) -> None:
    """Of a step with hardly any activations: while its first block is gathered."""
    memory = fsdp2_memory(shapes(CONFIGS["pera"], **WIDE), 2)
    # gloo's threads may hold a buffer longer.
    assert min(process["peak"] for process in found) == pytest.approx(memory.peak(0), rel=0.001)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_tensor_parallel(found: Found, checkpointing: bool) -> None:
    """Two processes share each layer and its adapter, and two such pairs shard what they have."""
    counted = shapes(CONFIGS["pera"])
    expected = tensor_parallel_traffic(counted, 2, ROWS * TOKENS, checkpointing=checkpointing)
    expected += fsdp2_traffic(counted.split(2), 2)
    for process in found:
        result = process["tensor_parallel", checkpointing]
        assert result["moved"] == moved(expected)
        assert measured(result) == parts(fsdp2_memory(counted.split(2), 2, process["rank", 2]))


@pytest.mark.parametrize("kind", ["nf4", "nf4-dq", "int8"])
def test_quantised_weights(kind: Any) -> None:
    """Counted on the meta device and read off layers of bitsandbytes: the same."""
    sizes = {"hidden_size": 128, "intermediate_size": 320}
    with torch.device("meta"):
        dense: Any = tiny_llama(**sizes).to(torch.bfloat16)
    real: Any = tiny_llama(**sizes).to(torch.bfloat16)
    quantized = quantizable_layers(dense)
    quantize_model(real, kind)
    for model in (dense, real):
        inject_adapter(model, PeraConfig(3))
    options: dict[str, Any] = {"quantized": quantized, "quantization": kind}
    counted = shapes_of(dense, dense.model.layers, **options)
    found = shapes_of(real, real.model.layers)
    assert [unit.parameters for unit in counted.units] == [unit.parameters for unit in found.units]
    assert [unit.whole for unit in counted.units] == [unit.whole for unit in found.units]
    whole = shapes_of(dense, dense.model.layers, **options, shards_packed=False)
    assert ddp_memory(whole) == ddp_memory(counted)
    # Packed weights that stay whole are neither gathered nor smaller with more processes.
    moved = sum(each.payload for each in fsdp2_traffic(whole, 4)) - sum(
        each.payload for each in fsdp2_traffic(counted, 4)
    )
    packed = sum(layer.weight.numel() for layer in quantized) // (1 if kind == "int8" else 2)
    assert moved == -2 * packed
    assert fsdp2_memory(whole, 4).held.base - fsdp2_memory(counted, 4).held.base == packed - packed // 4


def test_what_each_process_sends() -> None:
    assert Collective("all_reduce", "gradients", 4, 800, 400).sent == 1200
    assert Collective("all_reduce", "gradients", 4, 800, 400).sent_trained == 600
    assert (
        Collective("all_gather", "parameters", 4, 800).sent
        == Collective("reduce_scatter", "gradients", 4, 800).sent
        == 600
    )


def test_a_single_process_sends_and_gathers_nothing() -> None:
    counted = shapes(CONFIGS["pera"])
    assert ddp_traffic(counted, 1) == fsdp2_traffic(counted, 1) == tensor_parallel_traffic(counted, 1, 10) == []
    assert fsdp2_memory(counted, 1).peak(0) == 0
    assert fsdp2_memory(counted, 1).held == ddp_memory(counted).held


@pytest.mark.parametrize("ranks", [2, 8])
def test_pera_moves_what_lora_moves_and_h(ranks: int) -> None:
    pera, lora = (shapes(config) for config in (PeraConfig(4), PeraConfig(4, 1)))
    # 14 adapted layers with 10 coefficients each.
    coefficients = 14 * 10 * 4
    assert ddp_memory(pera).held.trained - ddp_memory(lora).held.trained == coefficients
    difference = payload(ddp_traffic(pera, ranks), "all_reduce") - payload(ddp_traffic(lora, ranks), "all_reduce")
    assert difference == coefficients
    padded = 14 * 4 * -(-10 // ranks) * ranks
    difference = payload(fsdp2_traffic(pera, ranks), "all_gather") - payload(fsdp2_traffic(lora, ranks), "all_gather")
    assert difference == 2 * padded
