"""Tiny GGUF files of the Llama architecture, and a large one that is read but once."""

from __future__ import annotations

import functools
import string
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from pera_lightning.requirements import READS_GGUF, is_outdated
from tests.conftest import OLD_TRANSFORMERS
from tests.support.pretrained import SPECIAL_TOKENS

reads_gguf = pytest.mark.skipif(is_outdated("transformers", READS_GGUF), reason=OLD_TRANSFORMERS)

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "model.layers": "blk",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
    "input_layernorm": "attn_norm",
}


@contextmanager
def read_once(folder: Path) -> Iterator[None]:
    """transformers reads a file's fields again for each config, tokenizer and model; seconds each, of a real one.

    And for each module of a model it makes the same map of names.
    """
    import gguf

    reader, kept = gguf.GGUFReader, functools.cache(gguf.GGUFReader)

    def read(path: Any, *mode: Any) -> Any:
        return reader(path, *mode) if mode or Path(path).parent != folder else kept(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GGUFReader", read)
        patch.setattr(gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map))
        yield


def save_gguf(model: nn.Module, path: Path) -> None:
    """Write a tiny Llama in float32 with a tokenizer of letters."""
    from gguf import GGUFWriter

    if is_outdated("transformers", READS_GGUF):
        pytest.skip(OLD_TRANSFORMERS)
    config = model.config
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    tokens = [*SPECIAL_TOKENS, *string.ascii_lowercase, "ab", "cd"]
    tokens += [f"<{i}>" for i in range(config.vocab_size - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges(["a b", "c d"])  # older transformers take a list of one for what is in it
    writer.add_token_types([3 if token in SPECIAL_TOKENS else 1 for token in tokens])
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    for key, value in model.state_dict().items():
        for ours, theirs in NAMES.items():
            key = key.replace(ours, theirs)
        writer.add_tensor(key, value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
