"""Tiny mixture-of-experts models with a linear layer beside their fused experts: a dense layer, or a shared expert."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.support.transformers_models import TOKENS, VOCABULARY, class_of_transformers

BODY: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    **TOKENS,
}
EXPERTS: dict[str, Any] = {"moe_intermediate_size": 12, "num_experts_per_tok": 2}
COUNTED: dict[str, Any] = {**EXPERTS, "num_experts": 4}
DEEPSEEK: dict[str, Any] = {
    **EXPERTS,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
MIXTURES: dict[str, dict[str, Any]] = {
    "Qwen3MoeForCausalLM": {**COUNTED, "mlp_only_layers": [0]},
    "Qwen2MoeForCausalLM": {**COUNTED, "mlp_only_layers": [0], "shared_expert_intermediate_size": 20},
    "DeepseekV3ForCausalLM": {**DEEPSEEK, **LATENT},
    "Glm4MoeForCausalLM": DEEPSEEK,
    "SolarOpenForCausalLM": DEEPSEEK,
    "Ernie4_5_MoeForCausalLM": {
        **EXPERTS,
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_num_shared_experts": 1,
        "moe_layer_start_index": 1,
    },
    "Llama4ForCausalLM": {"num_local_experts": 4, "moe_layers": [1], "intermediate_size_mlp": 24},
    "AfmoeForCausalLM": {**COUNTED, "num_shared_experts": 1, "num_dense_layers": 1},
    "LagunaForCausalLM": {**COUNTED, "shared_expert_intermediate_size": 12},
}
"""Class -> what its config has beside the body."""


def mixture(name: str, **options: Any) -> nn.Module:
    """The tiny model of a class in `MIXTURES`."""
    kind = class_of_transformers(name)
    settings = {**BODY, **MIXTURES[name], **options}
    if "qk_rope_head_dim" in settings:
        del settings["head_dim"]
    torch.manual_seed(0)
    model = kind(kind.config_class(**settings))
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim > 1:
                value.normal_(std=0.2)
    return model.eval()
