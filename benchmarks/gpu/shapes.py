"""Shapes of published models, as their config.json says them; the weights are random."""

from __future__ import annotations

from typing import Any

Architecture = dict[str, Any]

LLAMA: Architecture = {
    "model_type": "llama",
    "vocab_size": 128256,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "dtype": "bfloat16",
}
LLAMA_3_2 = {**LLAMA, "max_position_embeddings": 131072, "tie_word_embeddings": True}
SHAPES: dict[str, Architecture] = {
    "llama3-8b": {
        **LLAMA,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
    },
    "llama3.2-1b": {
        **LLAMA_3_2,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "head_dim": 64,
    },
    "smollm2-135m": {
        **LLAMA,
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "rope_theta": 100000.0,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
}
"""Of the models whose steps are timed."""
TINY: Architecture = {
    "vocab_size": 40960,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "max_window_layers": 2,
}
"""What replaces the sizes of any of them in a trial without a GPU. Rows of whole blocks of 64: some CPUs unpack others
wrongly."""
PUBLISHED: dict[str, Architecture] = {
    "models/smollm2-135m-instruct": SHAPES["smollm2-135m"],
    "meta-llama/Llama-3.2-1B-Instruct": SHAPES["llama3.2-1b"],
    "meta-llama/Llama-3.2-3B-Instruct": {
        **LLAMA_3_2,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "head_dim": 128,
    },
    "meta-llama/Meta-Llama-3-8B-Instruct": SHAPES["llama3-8b"],
    "mistralai/Mistral-7B-Instruct-v0.3": {
        "model_type": "mistral",
        "vocab_size": 32768,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    },
    "Qwen/Qwen2.5-7B-Instruct": {
        "model_type": "qwen2",
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "use_sliding_window": False,
        "sliding_window": 131072,
        "max_window_layers": 28,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    },
}
"""By what `model.init_args.pretrained` of a config says: `estimate` is to need no network."""


def tiny(architecture: Architecture) -> Architecture:
    """The same architecture with sizes for a trial."""
    return {**architecture, **TINY}
