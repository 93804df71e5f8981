"""Tiny random models of transformers, by name; their widths fill the blocks of 4-bit weights."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from tests.conftest import OLD_MODELS

VOCABULARY = 64
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
ENCODER = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
DECODER = {"vocab_size": VOCABULARY, **ENCODER, "num_key_value_heads": 2, **TOKENS}
EXPERTS = {"moe_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2}
IMAGE = {"image_size": 16, "patch_size": 8}

SETTINGS: dict[str, dict[str, object]] = {
    "GPT2LMHeadModel": {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, **TOKENS},
    "BertForSequenceClassification": {"vocab_size": VOCABULARY, **ENCODER},
    "RobertaForSequenceClassification": {"vocab_size": VOCABULARY, **ENCODER, **TOKENS},
    "DistilBertForSequenceClassification": {
        "vocab_size": VOCABULARY,
        "dim": 64,
        "hidden_dim": 128,
        "n_layers": 2,
        "n_heads": 4,
    },
    "DebertaV2ForSequenceClassification": {
        "vocab_size": VOCABULARY,
        **ENCODER,
        "pooler_hidden_size": 64,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
    },
    "ModernBertForSequenceClassification": {
        "vocab_size": VOCABULARY,
        **ENCODER,
        **TOKENS,
        "cls_token_id": 1,
        "sep_token_id": 2,
    },
    "LlamaForSequenceClassification": {**DECODER},
    "GPT2ForSequenceClassification": {
        "vocab_size": VOCABULARY,
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        **TOKENS,
    },
    "T5ForConditionalGeneration": {
        "vocab_size": VOCABULARY,
        "d_model": 64,
        "d_kv": 16,
        "d_ff": 128,
        "num_layers": 2,
        "num_heads": 4,
        "decoder_start_token_id": 0,
    },
    "ViTForImageClassification": {**ENCODER, **IMAGE},
    "WhisperForConditionalGeneration": {
        "vocab_size": VOCABULARY,
        "num_mel_bins": 16,
        "d_model": 64,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 128,
        "decoder_ffn_dim": 128,
        "max_source_positions": 10,
        "max_target_positions": 16,
        "decoder_start_token_id": 1,
        **TOKENS,
    },
    "CLIPModel": {
        "text_config": {"vocab_size": VOCABULARY, **ENCODER, "max_position_embeddings": 16, **TOKENS},
        "vision_config": {**ENCODER, **IMAGE},
        "projection_dim": 64,
    },
    "MambaForCausalLM": {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, **TOKENS},
    "LlamaForCausalLM": {**DECODER},
    "MixtralForCausalLM": {**DECODER, "num_local_experts": 4},
    "Qwen2MoeForCausalLM": {**DECODER, **EXPERTS, "shared_expert_intermediate_size": 64},
    "Qwen3MoeForCausalLM": {**DECODER, **EXPERTS, "head_dim": 16},
}


def class_of_transformers(name: str) -> Any:
    """The class of this name, for which the test is skipped where the installed transformers has none."""
    import transformers

    if not hasattr(transformers, name):
        pytest.skip(OLD_MODELS)
    return getattr(transformers, name)


def transformers_model(name: str, **options: object) -> nn.Module:
    """The tiny model of a class of transformers."""
    kind = class_of_transformers(name)
    return kind(kind.config_class(**{**SETTINGS[name], **options}))
