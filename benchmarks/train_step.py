"""A training step of SmolLM2-135M: bytes kept for the backward pass, peak memory, time."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.floor import step_floor
from benchmarks.measure import medians, peak_bytes, ratios, saved_bytes
from benchmarks.models import KINDS, adapted_model, frozen_base

BATCH, LENGTH = 4, 64
COMPILED_LAYERS = 6


def measure(rank: int, dropout: float, repeats: int) -> dict[str, Any]:
    """One row: everything about one rank and one dropout."""
    ids = torch.randint(0, 40_000, (BATCH, LENGTH))
    models = {kind: adapted_model(kind, rank, dropout) for kind in KINDS}
    base = frozen_base()
    base.enable_input_require_grads()
    kept = {kind: saved_bytes(partial(loss, model, ids), model) for kind, model in {**models, "base": base}.items()}
    steps = {kind: partial(step, model, ids) for kind, model in models.items()}
    # In pairs: what runs before a step decides how much memory it finds mapped.
    time_ratios = {
        kind: ratios({"lora": steps["lora"], kind: steps[kind]}, repeats, to="lora")[kind] for kind in ("pera", "naive")
    }
    row = {"rank": rank, "dropout": dropout, **{f"saved_mb_{kind}": size / 1e6 for kind, size in kept.items()}}
    for kind in ("pera", "naive"):
        row[f"saved_share_{kind}"] = (kept[kind] - kept["base"]) / (kept["lora"] - kept["base"])
        row[f"step_time_{kind}"] = time_ratios[kind]
    row["step_time_floor"] = step_floor(base, rank)
    for kind in KINDS:
        row[f"peak_mb_{kind}"] = peak_bytes(steps[kind]) / 1e6
    return row


def compiled(rank: int, dropout: float, repeats: int) -> dict[str, Any]:
    """A step under torch.compile(fullgraph=True) over the same model's eager step, for LoRA and PERA."""
    ids = torch.randint(0, 40_000, (BATCH, LENGTH))
    row: dict[str, Any] = {"rank": rank, "dropout": dropout}
    for kind in ("lora", "pera"):
        model = adapted_model(kind, rank, dropout)
        inner = model.base_model.model.model if kind == "lora" else model.model
        inner.layers = inner.layers[:COMPILED_LAYERS]
        fast = torch.compile(model, fullgraph=True)
        times = medians({"eager": partial(step, model, ids), "compiled": partial(step, fast, ids)}, repeats)
        row |= {f"eager_s_{kind}": times["eager"], f"compiled_s_{kind}": times["compiled"]}
        row[f"saved_mb_compiled_{kind}"] = saved_bytes(partial(loss, fast, ids), model) / 1e6
    return row


def loss(model: nn.Module, ids: Tensor) -> Tensor:
    """Forward."""
    return model(input_ids=ids, labels=ids).loss


def step(model: nn.Module, ids: Tensor) -> None:
    """Forward and backward."""
    loss(model, ids).backward()
