"""Llama-3.1 of 8, 70 and 405 billion parameters on 8 to 1024 GPUs, on paper: memory of a GPU and bytes of a step.

make at-scale
python -m benchmarks.at_scale

Nothing is measured and no weights are needed: the models are built on torch's meta device, the package's own functions
count. Writes `docs/at_scale.md`, its picture and `benchmarks/results/at_scale.csv`.
"""

from __future__ import annotations

import csv
import itertools
import warnings
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from transformers import LlamaConfig

from benchmarks import at_scale_report
from benchmarks.model_shapes import ModelShapes, shapes_of
from benchmarks.sharded_memory import ShardedMemory, ddp_memory, fsdp2_memory
from benchmarks.traffic import Collective, ddp_traffic, fsdp2_traffic, tensor_parallel_traffic
from pera_lightning import PeraConfig
from pera_lightning.analysis.memory import GB, needed
from pera_lightning.cli.estimate.fit_on_meta import FitOnMeta
from pera_lightning.cli.estimate.fit_options import FitOptions
from pera_lightning.loading.pretrained import PretrainedSource

ROOT = Path(__file__).parent.parent
# What the config.json of each model says.
MODELS = {
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "70B": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
    "405B": {"hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126, "num_attention_heads": 128},
}
COMMON = {"vocab_size": 128256, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 131072}
DEVICES = (8, 16, 64, 256, 1024)
RANKS = (8, 16)
ADAPTERS = {"PERA": 2, "LoRA": 1}
TOKENS = 4096
"""One row for each data-parallel process."""
TENSOR_PARALLEL = 8
CARDS = (24, 80, 141)


class Strategy(NamedTuple):
    """How a model is spread."""

    sharded: bool
    tensor_parallel: int = 1
    quantization: str | None = None
    shards_packed: bool = True


STRATEGIES = {
    "DDP": Strategy(sharded=False),
    "FSDP2": Strategy(sharded=True),
    "TP 8 + FSDP2": Strategy(sharded=True, tensor_parallel=TENSOR_PARALLEL),
    "4-bit DDP": Strategy(sharded=False, quantization="nf4-dq"),
    "4-bit FSDP2": Strategy(sharded=True, quantization="nf4-dq"),
    "4-bit FSDP2, packed weights whole": Strategy(sharded=True, quantization="nf4-dq", shards_packed=False),
}


def main() -> None:
    """Count, print and write."""
    # Of transformers, about its own names.
    warnings.filterwarnings("ignore", category=FutureWarning)
    cases = list(itertools.product(MODELS, STRATEGIES, RANKS, ADAPTERS, DEVICES))
    rows = [row(*case) for case in track(cases, description="counting")]
    with (ROOT / "benchmarks" / "results" / "at_scale.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    at_scale_report.show(rows, Console())
    at_scale_report.write(rows, ROOT / "docs")


def row(model: str, strategy: str, rank: int, adapter: str, devices: int) -> dict[str, Any]:
    """One model, spread in one way over so many GPUs."""
    way, config = STRATEGIES[strategy], PeraConfig(rank, ADAPTERS[adapter])
    whole = shapes(model, way, config)
    local = whole.split(way.tensor_parallel)
    copies = devices // way.tensor_parallel
    memory = fsdp2_memory(local, copies) if way.sharded else ddp_memory(local)
    moved = fsdp2_traffic(local, copies) if way.sharded else ddp_traffic(local, copies)
    moved += tensor_parallel_traffic(whole, way.tensor_parallel, TOKENS, checkpointing=True)
    names = {"model": model, "strategy": strategy, "rank": rank, "adapter": adapter, "gpus": devices}
    return {**names, **memory_columns(memory, activations(model, way, config)), **traffic_columns(moved)}


def memory_columns(memory: ShardedMemory, activations: int) -> dict[str, Any]:
    """Bytes of a GPU part by part, and the smallest card that holds them."""
    step = memory.peak(activations)
    total = needed(memory.held, step)
    return {
        "base": memory.held.base,
        "factors": memory.held.trained,
        "gradients": memory.held.gradients,
        "optimizer": memory.held.optimizer,
        "gathered_root": memory.root,
        "gathered_block": memory.block,
        "gradients_on_their_way": memory.reducing,
        "activations": activations,
        "needed": round(total),
        "fits_gb": next((card for card in CARDS if total <= card * GB), None),
    }


def traffic_columns(moved: list[Collective]) -> dict[str, Any]:
    """Bytes of a step: payloads, and what each GPU sends by the ring algorithm."""
    return {
        "payload": sum(each.payload for each in moved),
        "sent": round(sum(each.sent for each in moved)),
        "sent_base": round(sum(each.sent - each.sent_trained for each in moved if each.what == "parameters")),
        "sent_factors": round(sum(each.sent_trained for each in moved if each.what == "parameters")),
        "sent_gradients": round(sum(each.sent_trained for each in moved if each.what == "gradients")),
        "sent_activations": round(sum(each.sent for each in moved if each.what == "activations")),
    }


@cache
def shapes(model: str, way: Strategy, config: PeraConfig) -> ModelShapes:
    """The whole model's, from one of its blocks: they are all alike."""
    built = fit(model, 1, 1, way.quantization, config)._model(True)
    one = shapes_of(
        built.lm,
        list(built.lm.model.layers),
        quantized=built.quantized,
        quantization=way.quantization,
        shards_packed=way.shards_packed,
    )
    return one._replace(blocks=one.blocks * MODELS[model]["num_hidden_layers"])


def activations(model: str, way: Strategy, config: PeraConfig) -> int:
    """Most bytes of a step's activations, logits and other tensors, with checkpointing."""
    return _activations(model, way.tensor_parallel, way.quantization, config)


@cache
def _activations(model: str, tensor_parallel: int, quantization: str | None, config: PeraConfig) -> int:
    # The first one counts index tensors too that are made once and stay. Each block adds what the one before it added.
    _, few, more = (
        fit(model, layers, tensor_parallel, quantization, config).step(True, 1, TOKENS).peak for layers in (1, 2, 3)
    )
    return few + (more - few) * (MODELS[model]["num_hidden_layers"] - 2)


def fit(model: str, layers: int, tensor_parallel: int, quantization: str | None, config: PeraConfig) -> FitOnMeta:
    """A fit on torch's meta device of a model with fewer layers, or of the part that a tensor-parallel process has."""
    sizes = {**COMMON, **MODELS[model], "num_hidden_layers": layers}
    for name in ("intermediate_size", "num_attention_heads", "num_key_value_heads"):
        sizes[name] //= tensor_parallel
    options = FitOptions(
        source=PretrainedSource(model),
        architecture=LlamaConfig(**sizes),
        pera=config,
        dtype=torch.bfloat16,
        quantization=quantization,
        optimizer="adamw",
        attention="flash",
        gradient_checkpointing=True,
        activation_offloading=False,
        batch_size=1,
        length=TOKENS,
        in_one_row=False,
        padding=False,
        eval_batch_size=None,
        eval_length=TOKENS,
    )
    return FitOnMeta(options)


if __name__ == "__main__":
    main()
