"""What some types of models need to be tiny, beside the rule of `tiny_configs`."""

from __future__ import annotations

from typing import Any

ROPE = {"rope_type": "default", "rope_theta": 1e4}
OF_EACH_KIND = {"full_attention": ROPE, "sliding_attention": ROPE}
THREE_AXES = {"rope_parameters": {**ROPE, "mrope_section": [2, 1, 1]}}
HALF_ROTARY = {"rope_parameters": {**ROPE, "mrope_section": [1, 1, 0], "partial_rotary_factor": 0.5}}
TWO_STAGES = {
    "depths": [1, 1],
    "num_heads": [2, 2],
    "embed_dim": 16,
    "image_size": 32,
    "patch_size": 4,
    "window_size": 4,
}
CONVOLUTIONS = {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2, "image_size": 32}
FOUR_STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 16, 16]}
PYRAMID = {**FOUR_STAGES, "num_attention_heads": [1, 2, 2, 2], "image_size": 64}
WAVES = {
    "conv_dim": [16, 16],
    "conv_kernel": [10, 3],
    "conv_stride": [5, 2],
    "num_feat_extract_layers": 2,
    # Its masks are longer than the sound.
    "apply_spec_augment": False,
    "num_codevectors_per_group": 8,
    "conv_depthwise_kernel_size": 3,
    "vocab_size": 64,
}
SPARSE = {
    "indexer_n_heads": 16,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 4,
    "indexer_compress_ratio": 2,
}

SETTINGS: dict[str, dict[str, Any]] = {
    # Decoders.
    "bailing_hybrid": {"num_experts": 8, "n_group": 2, "num_group": 2},
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {"rope_parameters": OF_EACH_KIND},
    "dbrx": {"attn_config": {"rope_theta": 1e4, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "intermediate_size": [48] * 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0],
    },
    "granitemoehybrid": {"layer_types": ["linear_attention", "attention"]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"zero_expert_num": 2},
    "mamba2": {"num_heads": 8},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp": {"text_config": SPARSE},
    "qwen4_exp_text": SPARSE,
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {
        "is_decoder": True,
        "axial_pos_embds": False,
        # Draws a seed of its own for dropout.
        "hidden_dropout_prob": 0.0,
        "local_attention_probs_dropout_prob": 0.0,
        "lsh_attention_probs_dropout_prob": 0.0,
        "hash_seed": 0,
        "attn_layers": ["local", "lsh"],
        "num_buckets": 2,
        "local_attn_chunk_length": 2,
        "lsh_attn_chunk_length": 2,
    },
    "roc_bert": {"pronunciation_vocab_size": 32, "shape_vocab_size": 32},
    "xmod": {"default_language": "en_XX"},
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_head_dim": 16,
        "attention_hidden_size": 64,
        "num_mem_blocks": 1,
    },
    "zaya": {"num_experts_per_tok": 1},
    # Encoders, and encoders with decoders.
    "canine": {"num_hash_buckets": 64},
    "esm": {"vocab_size": 64, "mask_token_id": 3, "pad_token_id": 0},
    "esmc": {"num_key_value_heads": 4},
    "layoutlmv3": {
        "visual_embed": False,
        "coordinate_size": 4,
        "shape_size": 8,
        "has_spatial_attention_bias": False,
        "has_relative_attention_bias": False,
    },
    "led": {"attention_window": [4, 4], "max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64},
    "luke": {"entity_vocab_size": 16},
    "markuplm": {"max_xpath_tag_unit_embeddings": 256, "max_xpath_subs_unit_embeddings": 16, "subs_pad_id": 15},
    "mobilebert": {"intra_bottleneck_size": 32, "embedding_size": 16},
    "neomme": {"head_dim": 32},
    # Sound.
    **dict.fromkeys(
        "data2vec-audio hubert sew sew-d unispeech unispeech-sat wav2vec2 wavlm wav2vec2-conformer".split(), WAVES
    ),
    "speech_to_text": {"input_feat_per_channel": 16, "input_channels": 1},
    "wav2vec2-bert": {**WAVES, "feature_projection_input_dim": 16},
    # Images.
    "bit": {"embedding_size": 16, "hidden_sizes": [32, 32], "depths": [1, 1], "num_groups": 4},
    "convnext": {
        "layer_scale_init_value": 1.0,
        "hidden_sizes": [16, 32],
        "depths": [1, 1],
        "num_stages": 2,
        "image_size": 32,
    },
    "convnextv2": {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2, "image_size": 32},
    "cvt": {"embed_dim": [16, 32, 32], "num_heads": [1, 2, 2], "depth": [1, 1, 1], "image_size": 32},
    "donut-swin": TWO_STAGES,
    "focalnet": {
        "embed_dim": 16,
        "depths": [1, 1],
        "hidden_sizes": [16, 32],
        "focal_levels": [1, 1],
        "focal_windows": [3, 3],
        "image_size": 32,
    },
    "hiera": {
        "embed_dim": 16,
        "image_size": [64, 64],
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 2, 2, 2],
        "query_stride": [2, 2],
        "masked_unit_size": [8, 8],
    },
    "mobilenet_v1": {"depth_multiplier": 0.1},
    "poolformer": FOUR_STAGES,
    "pvt": PYRAMID,
    "pvt_v2": PYRAMID,
    "regnet": {"embedding_size": 16, "hidden_sizes": [16, 32, 32, 32], "depths": [1, 1, 1, 1], "groups_width": 8},
    "resnet": {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1]},
    "segformer": PYRAMID,
    "swiftformer": {"layer_scale_init_value": 1.0, "embed_dims": [8, 16, 16, 16], "depths": [1, 1, 1, 1]},
    "swin": TWO_STAGES,
    "swinv2": TWO_STAGES,
    # Images and text.
    "glm46v": {"text_config": THREE_AXES},
    "glm4v": {"text_config": THREE_AXES},
    "glm4v_moe": {"text_config": HALF_ROTARY},
    "glm_ocr": {"text_config": HALF_ROTARY},
    "glmga": {"text_config": THREE_AXES},
    "paddleocr_vl": {"text_config": THREE_AXES},
    "qwen2_5_vl": {"text_config": THREE_AXES},
    "qwen2_vl": {"text_config": THREE_AXES},
}

TOO_LARGE = (
    "align blt deepseek_vl_hybrid dia dots3_note dots3_note_text efficientnet florence2 hgnet_v2 janus mobilenet_v2 "
    "mobilevit mobilevitv2 muse_spark phi4_multimodal pp_formulanet pp_lcnet speech-encoder-decoder speecht5 textnet "
    "unlimited_ocr vibevoice vibevoice_asr"
).split()
"""Types whose size is in numbers that no rule finds."""
