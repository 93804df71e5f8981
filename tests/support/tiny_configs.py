"""Tiny configs of any model of transformers: a rule for the names that most share, and a few settings for the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

VOCABULARY = 64
TINY: dict[int, str] = {
    VOCABULARY: "vocab_size src_vocab_size tgt_vocab_size decoder_vocab_size unpadded_vocab_size "
    "vocab_size_per_layer_input t2u_vocab_size max_position_embeddings n_positions n_ctx max_seq_len "
    "max_source_positions max_target_positions model_max_length",
    32: "hidden_size d_model n_embd dim embed_dim hidden_dim emb_dim embedding_dim embedding_size "
    "word_embed_proj_dim projection_dim lru_width attention_hidden_size out_hidden_size output_hidden_size "
    "encoder_hidden_size decoder_hidden_size input_embedding_size output_embedding_size true_hidden_size "
    "pooler_hidden_size conv_channels projector_hidden_size context_length",
    48: "intermediate_size moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size "
    "moe_shared_expert_intermediate_size shared_experts_intermediate_size intermediate_size_mlp "
    "dense_intermediate_size encoder_ffn_dim decoder_ffn_dim ffn_dim ffn_hidden_size expert_ffn_hidden_size "
    "n_inner d_ff dff dim_ff d_inner feed_forward_size mlp_dim",
    16: "index_n_heads moe_latent_size kv_lora_rank q_lora_rank o_lora_rank image_size "
    "hidden_size_per_layer_input d_latents num_mel_bins mamba_d_state ssm_state_size router_hidden_size "
    "laurel_rank pronunciation_embed_dim shape_embed_dim entity_emb_size index_head_dim sliding_window_size",
    8: "head_dim d_kv d_head attention_head_size swa_head_dim global_head_dim kv_channels mamba_head_dim "
    "mamba_headdim mamba_d_head linear_head_dim linear_key_head_dim linear_value_head_dim v_head_dim "
    "qk_nope_head_dim qk_rope_head_dim state_size time_step_rank mamba_dt_rank rotary_dim patch_size "
    "chunk_size mamba_chunk_size num_latents dim_head num_landmarks segment_means_seq_len sliding_window "
    "attention_chunk_size attention_window_size block_size mamba_n_heads mamba_num_heads",
    4: "index_topk index_block_size keep_window_size num_attention_heads n_head n_heads num_heads "
    "attention_heads encoder_attention_heads decoder_attention_heads num_encoder_attention_heads "
    "num_decoder_attention_heads swa_num_attention_heads num_sliding_attention_heads "
    "cross_num_attention_heads num_experts num_local_experts n_routed_experts moe_num_experts "
    "linear_num_value_heads linear_num_heads num_conv_pos_embeddings num_conv_pos_embedding_groups "
    "conv_depthwise_kernel_size",
    2: "index_topk_blocks num_key_value_heads num_kv_heads swa_num_key_value_heads num_global_key_value_heads "
    "linear_num_key_heads num_experts_per_tok num_experts_per_token moe_topk moe_k top_k_experts "
    "num_hidden_layers n_layer n_layers num_layers num_blocks depth encoder_layers decoder_layers "
    "num_encoder_layers num_decoder_layers layers speech_encoder_layers t2u_encoder_layers t2u_decoder_layers",
    1: "first_k_dense_replace n_group topk_group num_nextn_predict_layers n_groups mamba_n_groups mamba_ngroups "
    "num_self_attends_per_block decoder_sparse_step encoder_sparse_step",
}
SIZES = {name: size for size, names in TINY.items() for name in names.split()}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
FEWEST, MOST = 2, 4
"""Layers of a tiny model: one of each kind, but no more than this."""


def tiny_config(kind: type[Any], settings: Mapping[str, Any] | None = None) -> Any:
    """The config of a class of transformers' configs, with everything small that makes a model large.

    Args:
        kind: The class. Its defaults say what there is.
        settings: What the model needs otherwise; a mapping for a config inside of it.
    """
    return kind(**_tiny(kind, {}, settings or {}))


def _tiny(kind: type[Any], given: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    base = kind(**given)
    values = base.to_dict()
    tiny = {name: size for name, size in {**SIZES, **TOKENS}.items() if _is_size(values.get(name))}
    if "kv_lora_rank" in tiny:
        # Keys and values are made for every head of their own.
        tiny["num_key_value_heads"] = tiny["num_attention_heads"]
    # Layers that are left out at random get no gradient now and then.
    tiny |= {name: 0.0 for name in values if name.endswith("layerdrop")}
    tiny |= _one_layer_of_each_kind(values)
    for name in getattr(kind, "sub_configs", None) or {}:
        part = getattr(base, name, None)
        if hasattr(part, "to_dict"):
            own = settings.get(name, {})
            tiny[name] = _tiny(type(part), {}, own if isinstance(own, Mapping) else {})
            tiny[name]["model_type"] = part.model_type
    parts = {name for name, value in tiny.items() if isinstance(value, dict)}
    return {**tiny, **{name: value for name, value in settings.items() if name not in parts}}


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _one_layer_of_each_kind(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with an entry for every layer, cut to the first layer of each kind."""
    depth = next((values[name] for name in DEPTHS if _is_size(values.get(name))), None)
    per_layer = {name: value for name, value in values.items() if isinstance(value, list) and len(value) == depth}
    if not per_layer or not depth:
        return {}
    kinds = list(zip(*per_layer.values(), strict=True))
    picked = [place for place, kind in enumerate(kinds) if kind not in kinds[:place]][:MOST]
    picked += range(max(0, FEWEST - len(picked)))
    cut = {name: [value[place] for place in picked] for name, value in per_layer.items()}
    return {**cut, **{name: len(picked) for name in DEPTHS if name in values}}
