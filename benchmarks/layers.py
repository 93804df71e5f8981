"""Forward and backward of single layers: cost against rank, order, number of tokens and shape."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.floor import layer_floor
from benchmarks.measure import ratios, saved_bytes
from benchmarks.models import KINDS, adapted_layer

SMOL = {"q_proj": (576, 576), "k_proj": (192, 576), "up_proj": (1536, 576), "down_proj": (576, 1536)}
LLAMA_8B = {"q_proj": (4096, 4096), "k_proj": (1024, 4096), "up_proj": (14336, 4096), "down_proj": (4096, 14336)}
DROPOUT = 0.05


def measure(
    shape: tuple[int, int], rank: int, tokens: int, repeats: int, order: int = 2, naive: bool = True
) -> dict[str, Any]:
    """One row: times over a LoRA layer of the same rank, and bytes kept for the backward pass."""
    kinds = ["lora", "pera"] + ["naive"] * (naive and order == 2)
    layers = {kind: adapted_layer(kind, shape, rank, DROPOUT, order) for kind in kinds}
    x = torch.randn(tokens, shape[1], requires_grad=True)
    grad = torch.randn(tokens, shape[0])
    steps = {kind: partial(step, layer, x, grad) for kind, layer in layers.items()}
    found = {kind: ratios({"lora": steps["lora"], kind: steps[kind]}, repeats, to="lora")[kind] for kind in kinds[1:]}
    kept = {kind: saved_bytes(lambda layer=layer: layer(x), layer) for kind, layer in layers.items()}
    row = {"out": shape[0], "in": shape[1], "rank": rank, "order": order, "tokens": tokens}
    row |= {"floor": layer_floor(shape, rank, order), "time_pera": found["pera"], "time_naive": found.get("naive")}
    return row | {f"saved_mb_{kind}": kept[kind] / 1e6 if kind in kept else None for kind in KINDS}


def step(layer: nn.Module, x: Tensor, grad: Tensor) -> None:
    """Forward and backward."""
    layer(x).backward(grad)
