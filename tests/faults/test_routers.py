"""Routers that are `nn.Linear` by class and return tuples: `'tuple' object has no attribute 'dtype'`."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor, nn
from transformers.models.esm.modeling_esmfold import EsmFoldLinear
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.models.idefics.modeling_idefics import IdeficsDecoupledLinear

from pera_lightning import PeraConfig, inject_adapter, merge_adapter, quantize_model
from pera_lightning.base_layers import beyond_multiplying
from pera_lightning.errors import TargetError
from pera_lightning.injection import adapted_layers
from tests.support.models import randomise_adapter
from tests.support.transformers_models import class_of_transformers

VOCABULARY = 32
COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}
LATENT = {
    "moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1,
    "first_k_dense_replace": 1, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
    "v_head_dim": 8, "num_key_value_heads": 2,
}  # fmt: skip

MODELS: dict[str, dict[str, object]] = {
    "Llama4ForCausalLM": {"num_local_experts": 4, "intermediate_size_mlp": 24, "head_dim": 8},
    "PhimoeForCausalLM": {"num_local_experts": 4, "num_key_value_heads": 2},
    "MixtralForCausalLM": {"num_local_experts": 4},
    "Qwen2MoeForCausalLM": {**EXPERTS, "shared_expert_intermediate_size": 16},
    "Qwen3MoeForCausalLM": EXPERTS,
    "DeepseekV3ForCausalLM": LATENT,
    "GptOssForCausalLM": {"num_local_experts": 4, "head_dim": 8},
    "OlmoeForCausalLM": EXPERTS,
    "GraniteMoeForCausalLM": {"num_local_experts": 4},
    "JambaForCausalLM": {
        "num_experts": 4, "num_hidden_layers": 2, "attn_layer_period": 2, "attn_layer_offset": 1,
        "expert_layer_period": 2, "expert_layer_offset": 1, "use_mamba_kernels": False, "mamba_d_state": 4,
        "mamba_dt_rank": 4,
    },
    "Ernie4_5_MoeForCausalLM": {"moe_intermediate_size": 16, "moe_num_experts": 4, "moe_k": 2},
    "Glm4MoeForCausalLM": {**EXPERTS, "n_routed_experts": 4, "first_k_dense_replace": 1, "num_key_value_heads": 2},
    "JetMoeForCausalLM": {"num_local_experts": 4, "kv_channels": 8, "num_key_value_heads": 1},
    "HunYuanMoEV1ForCausalLM": {**EXPERTS, "moe_topk": 2},
    "AfmoeForCausalLM": {**EXPERTS, "num_dense_layers": 1, "num_shared_experts": 1},
    "LongcatFlashForCausalLM": {
        "vocab_size": VOCABULARY, "hidden_size": 16, "num_layers": 1, "num_attention_heads": 2, "ffn_hidden_size": 24,
        "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "head_dim": 4,
        "v_head_dim": 8, "moe_topk": 2, "n_routed_experts": 4, "zero_expert_num": 2, "expert_ffn_hidden_size": 16,
    },
    "DbrxForCausalLM": {
        "vocab_size": VOCABULARY, "d_model": 16, "n_heads": 2, "n_layers": 2, "max_seq_len": 32,
        "attn_config": {"kv_n_heads": 1, "clip_qkv": 8, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "SwitchTransformersForConditionalGeneration": {
        "vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2, "num_layers": 2,
        "num_decoder_layers": 2, "num_experts": 4, "decoder_start_token_id": 0,
    },
    "NllbMoeForConditionalGeneration": {
        "vocab_size": VOCABULARY, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "num_experts": 4,
        "encoder_sparse_step": 2, "decoder_sparse_step": 2, "decoder_start_token_id": 1,
    },
}  # fmt: skip
RETURNING_TUPLES = {
    "Llama4ForCausalLM": tuple(f"model.layers.{i}.feed_forward.router" for i in range(2)),
    "PhimoeForCausalLM": tuple(f"model.layers.{i}.mlp.router" for i in range(2)),
}


def tiny(name: str) -> nn.Module:
    kind, options = class_of_transformers(name), MODELS[name]
    config = kind.config_class(**{**({} if "vocab_size" in options else COMMON), **options})
    # Grouped products are not in all versions of torch for the CPU.
    config._experts_implementation = "eager"
    torch.manual_seed(0)
    return kind(config).eval()


def logits(model: nn.Module) -> Tensor:
    ids = torch.randint(3, VOCABULARY, (2, 6), generator=torch.Generator().manual_seed(1))
    decoder = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}  # type: ignore[union-attr]
    return model(input_ids=ids, use_cache=False, **decoder).logits


@pytest.mark.parametrize("name", MODELS)
def test_routers_are_left_alone_and_named_or_adapted_rightly(name: str) -> None:
    model = tiny(name)
    report = inject_adapter(model, PeraConfig(2, 2))
    left = RETURNING_TUPLES.get(name, ())
    assert report.not_plain == dict.fromkeys(left, "returns a tuple")
    assert not set(left) & set(report.adapted)
    assert all(router.replace(".0.", ".*.").replace(".1.", ".*.") in str(report) for router in left)
    randomise_adapter(model)
    logits(model.train()).square().mean().backward()
    called = {layer: module for layer, module in adapted_layers(model) if ".experts." not in layer}
    assert [
        layer for layer, module in called.items() if module.pera_A.grad is None or not module.pera_A.grad.any()
    ] == []
    with torch.no_grad():
        unmerged = logits(model.eval())
        torch.testing.assert_close(logits(merge_adapter(model)), unmerged, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(unmerged, logits(tiny(name)), atol=1e-3)


@pytest.mark.parametrize(("name", "routers"), RETURNING_TUPLES.items())
def test_a_router_that_returns_a_tuple_is_refused_where_it_is_named(name: str, routers: tuple[str, ...]) -> None:
    with pytest.raises(TargetError, match=f"'{routers[0]}' of kind .*Router, which returns a tuple"):
        inject_adapter(tiny(name), PeraConfig(2, target_modules=["router"]))


def test_quantisation_leaves_it_alone() -> None:
    assert RETURNING_TUPLES["Llama4ForCausalLM"][0] in quantize_model(tiny("Llama4ForCausalLM"), "nf4").left


def test_the_linear_classes_of_transformers_are_judged_by_what_they_do() -> None:
    adding = FalconLinear(6, 4), EsmFoldLinear(6, 4), IdeficsDecoupledLinear(6, 4, out_additional_features=0)
    assert [beyond_multiplying(layer) for layer in adding] == [None] * 3
    more: list[nn.Module] = [IdeficsDecoupledLinear(6, 4, out_additional_features=2)]
    # Not in all versions of transformers.
    if importlib.util.find_spec("transformers.models.deepseek_v4"):
        grouped = importlib.import_module("transformers.models.deepseek_v4.modeling_deepseek_v4")
        more.append(grouped.DeepseekV4GroupedLinear(8, 12, 4))
    assert None not in [beyond_multiplying(layer) for layer in more]
