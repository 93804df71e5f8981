"""Models of given shapes with random weights, frozen; adapted copies that share the weights of one base."""

from __future__ import annotations

import copy
from typing import Any

import peft
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.gpu.shapes import Architecture
from benchmarks.models import TARGETS
from pera_lightning import PeraConfig, inject_adapter, quantize_model
from pera_lightning.analysis.memory import quantizable_layers, quantized_bytes
from pera_lightning.models.gradient_checkpointing import enable_gradient_checkpointing

SPREAD = 0.02
"""Standard deviation of the weights, as transformers starts them."""


def build(
    architecture: Architecture,
    device: torch.device,
    *,
    quantization: Any = None,
    dtype: torch.dtype = torch.bfloat16,
    attention: str = "sdpa",
) -> Any:
    """A frozen causal language model on the device, quantised block by block: no more than one block is ever whole."""
    config = AutoConfig.for_model(**architecture)
    lm = on_meta(config, dtype, attention)
    body = lm.model
    for block in body.layers:
        _fill(block, device)
        if quantization is not None:
            quantize_model(block, quantization)
    for rest in (body.embed_tokens, body.norm, *([] if config.tie_word_embeddings else [lm.lm_head])):
        _fill(rest, device)
    with torch.device(device):
        # Its buffers are computed, not drawn.
        body.rotary_emb = type(body.rotary_emb)(config=config)
    lm.tie_weights()
    return lm.requires_grad_(False).train()


def on_meta(config: Any, dtype: torch.dtype, attention: str = "sdpa") -> Any:
    """The model without memory."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)


def base_bytes(architecture: Architecture, quantization: str | None) -> int:
    """Bytes of the weights of such a model in bfloat16, counted."""
    lm = on_meta(AutoConfig.for_model(**architecture), torch.bfloat16)
    packed = {id(layer.weight) for layer in quantizable_layers(lm)} if quantization else set()
    return sum(quantized_bytes(value, quantization if id(value) in packed else None) for value in lm.parameters())


def share(model: Any) -> Any:
    """A copy whose weights, frozen or quantised, are those of `model`: several need the memory of one."""
    tensors = [*model.parameters(), *model.buffers()]
    states = [getattr(value, "quant_state", None) for value in tensors]
    shared = [thing for thing in [*tensors, *states] if thing is not None]
    return copy.deepcopy(model, {id(thing): thing for thing in shared})


def adapted(base: Any, kind: str, settings: dict[str, Any]) -> nn.Module:
    """A copy of the base that shares its weights, with a LoRA of PEFT ("lora"), a PERA ("pera") or neither ("base")."""
    model = share(base)
    if settings.get("checkpointing"):
        enable_gradient_checkpointing(model)
    rank, dropout = settings["rank"], settings["dropout"]
    if kind == "lora":
        # What `from_pretrained` leaves on a quantised model, and PEFT asks for.
        model.is_loaded_in_4bit = settings.get("quant") is not None
        options = {"r": rank, "lora_alpha": rank, "lora_dropout": dropout, "target_modules": TARGETS}
        return peft.get_peft_model(model, peft.LoraConfig(**options)).train()
    if kind == "pera":
        config = PeraConfig(rank, settings["order"], terms=settings["terms"], dropout=dropout, target_modules=TARGETS)
        inject_adapter(model, config)
    return model.train()


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Those with a gradient."""
    return [value for value in model.parameters() if value.requires_grad]


@torch.no_grad()
def _fill(module: nn.Module, device: torch.device) -> None:
    module.to_empty(device=device)
    for name, value in module.named_parameters():
        if value.dim() > 1:
            value.normal_(std=SPREAD)
        else:
            value.fill_(0.0 if name.endswith("bias") else 1.0)
