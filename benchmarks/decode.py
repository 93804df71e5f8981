"""Latency of one generated token of SmolLM2-135M: base, merged, and with adapters left apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from benchmarks.measure import medians, ratios
from benchmarks.models import adapted_model, frozen_base, trained
from pera_lightning import merge_adapter

PROMPT, TOKENS = 16, 8


def measure(rank: int, repeats: int) -> dict[str, Any]:
    """One row: decode times of one rank, each in turn with the others."""
    models = {
        "base": frozen_base(),
        "merged": merge_adapter(trained(adapted_model("pera", rank, 0.0))),
        "lora": trained(adapted_model("lora", rank, 0.0)),
        "pera": trained(adapted_model("pera", rank, 0.0)),
        "naive": trained(adapted_model("naive", rank, 0.0)),
    }
    runs = {kind: Decoding(model.eval()) for kind, model in models.items()}
    over_lora = {
        kind: ratios({"lora": runs["lora"], kind: runs[kind]}, 3 * repeats, to="lora")[kind]
        for kind in ("pera", "naive")
    }
    over_base = ratios({kind: runs[kind] for kind in ("base", "merged")}, 3 * repeats, to="base")
    seconds = medians(runs, 3)
    row: dict[str, Any] = {"rank": rank, "merged_over_base": over_base["merged"]}
    row |= {f"{kind}_over_lora": over_lora[kind] for kind in ("pera", "naive")}
    return row | {f"ms_per_token_{kind}": 1e3 * value / TOKENS for kind, value in seconds.items()}


class Decoding:
    """Generates a few tokens after a prompt that is read once."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.prompt = torch.randint(0, 40_000, (1, PROMPT))
        self.token = torch.randint(0, 40_000, (1, 1))
        self.cache = DynamicCache()
        self._forward(self.prompt)

    def __call__(self) -> None:
        """One after another, each token alone."""
        for _ in range(TOKENS):
            self._forward(self.token)
        self.cache.crop(-TOKENS)

    @torch.inference_mode()
    def _forward(self, ids: Tensor) -> None:
        self.model(input_ids=ids, past_key_values=self.cache)
