"""Tiny base models as GGUF files, written with code of their own to test the package's against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from torch import Tensor, nn

ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2}


def tiny_qwen2(**options: object) -> nn.Module:
    """The size of `tiny_llama`; its biases are not zero."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    settings = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    model = Qwen2ForCausalLM(Qwen2Config(**{**settings, **options})).eval()
    for name, value in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(value, std=0.3)
    return model


def write_base_gguf(
    model: nn.Module, path: Path, matrices: str = "F32", alignment: int | None = None, **options: Any
) -> None:
    """Write a Llama or Qwen2 model of transformers, with its matrices in a type of GGUF; there is no tokenizer."""
    config = model.config
    arch = ARCHITECTURES[config.model_type]
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch], **options)
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name("tiny")
    writer.add_context_length(256)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("no_vocab")
    writer.add_array("general.languages", ["en", "de"])
    tied = config.tie_word_embeddings
    for name, value in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        rows = _paired(name, value, config) if arch == gguf.MODEL_ARCH.LLAMA else value
        kind = gguf.GGMLQuantizationType[matrices if value.dim() == 2 else "F32"]
        data = gguf.quantize(np.ascontiguousarray(rows.detach().float().numpy()), kind)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _paired(name: str, value: Tensor, config: object) -> Tensor:
    """The rows of a Llama's query or key weight as llama.cpp wants them: the halves of a head alternate."""
    if "q_proj" not in name and "k_proj" not in name:
        return value
    width = config.hidden_size // config.num_attention_heads
    order = [
        head + half + pair
        for head in range(0, len(value), width)
        for pair in range(width // 2)
        for half in (0, width // 2)
    ]
    return value[order]
