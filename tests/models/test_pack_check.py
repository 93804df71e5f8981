"""Models that mix rows which stand in one row are refused before they learn from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import masking_utils

from pera_lightning import quantize_model
from pera_lightning.base_layers import Quantization
from pera_lightning.data.collate import lay_end_to_end
from pera_lightning.errors import ConfigError
from pera_lightning.models import causal_lm
from pera_lightning.models.causal_lm import PeraCausalLM
from pera_lightning.models.pack_check import LENGTH, _random_rows, check_packs, measure_separation
from tests.support.causal_fits import loader, make_trainer
from tests.support.model_types import model_types
from tests.support.models import tiny_gpt2, tiny_llama
from tests.support.pretrained import save_pretrained

pytestmark = pytest.mark.filterwarnings(
    "ignore:You defined a `validation_step` but have no:UserWarning",
    "ignore:.*flex_attention called without torch.compile",
    "ignore::DeprecationWarning",
)
CPU = torch.device("cpu")
SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4}


def tiny_qwen3() -> nn.Module:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**SIZES, **HEADS, num_key_value_heads=2, head_dim=16, intermediate_size=48))


def tiny_opt(hidden_size: int = 32) -> nn.Module:
    from transformers import OPTConfig, OPTForCausalLM

    width = {"hidden_size": hidden_size, "ffn_dim": 2 * hidden_size, "word_embed_proj_dim": hidden_size}
    return OPTForCausalLM(OPTConfig(**{**SIZES, **width}, **HEADS, max_position_embeddings=64))


def tiny_falcon() -> nn.Module:
    from transformers import FalconConfig, FalconForCausalLM

    return FalconForCausalLM(FalconConfig(**SIZES, **HEADS))


def tiny_mamba() -> nn.Module:
    from transformers import MambaConfig, MambaForCausalLM

    return MambaForCausalLM(MambaConfig(**SIZES, state_size=8))


def packed(*lengths: int) -> dict[str, Tensor]:
    ids = [torch.randint(3, 64, (length,)) for length in lengths]
    return lay_end_to_end([{"input_ids": row, "labels": row} for row in ids])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("model_of", "attention"),
    [
        *((model_of, attention) for model_of in (tiny_llama, tiny_qwen3, tiny_gpt2) for attention in ("sdpa", "eager")),
        *((model_of, "flex_attention") for model_of in (tiny_llama, tiny_qwen3)),
    ],
)
def test_models_that_keep_rows_apart(model_of: Any, attention: str, dtype: torch.dtype) -> None:
    model = model_of().to(dtype)
    model.set_attn_implementation(attention)
    # flex_attention as it is, not compiled.
    with torch.compiler.set_stance("force_eager"):
        check_packs(model, CPU)
        separation = measure_separation(model, CPU)
    # To the last bit, also in 16 bits: nothing has to be told from rounding.
    assert (separation.leak, separation.noise) == (0, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_of", [tiny_opt, tiny_falcon, tiny_mamba])
def test_models_that_mix_rows(model_of: Any, dtype: torch.dtype) -> None:
    model = model_of().to(dtype)
    with pytest.raises(ConfigError, match=f"{type(model).__name__} with attn_implementation"):
        check_packs(model, CPU)


@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantised_models(quantization: Quantization) -> None:
    keeping, mixing = tiny_llama(hidden_size=64, intermediate_size=128), tiny_opt(64)
    for model in (keeping, mixing):
        quantize_model(model, quantization)
    assert measure_separation(keeping, CPU).leak == 0  # type: ignore[arg-type]
    check_packs(keeping, CPU)  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        check_packs(mixing, CPU)  # type: ignore[arg-type]


def test_the_refusal_names_the_difference() -> None:
    model: Any = tiny_opt().eval()
    found = measure_separation(model, CPU)
    # What the check saw, once more by hand: the middle one of three rows against the row alone.
    before, row, after = _random_rows(model)
    with torch.no_grad():
        alone = model(input_ids=row[None]).logits[0]
        positions = torch.arange(LENGTH).repeat(3)[None]
        between = model(input_ids=torch.cat([before, row, after])[None], position_ids=positions).logits[0]
    difference = ((between[LENGTH : 2 * LENGTH] - alone).norm() / alone.norm()).item()
    assert found.difference == pytest.approx(difference, rel=1e-4)
    with pytest.raises(ConfigError, match=f"differ by {difference:.2g} of their size.*change by {found.leak:.2g} when"):
        check_packs(model, CPU)


def test_tokens_with_a_meaning_of_their_own_are_not_asked_about() -> None:
    model: Any = tiny_llama(pad_token_id=3, eos_token_id=[4, 5], image_token_id=6)
    assert not {1, 3, 4, 5, 6} & set(_random_rows(model).flatten().tolist())


def test_positions_that_do_not_restart_are_seen() -> None:
    """Rows that see nothing of each other, at positions of the whole pack."""
    model: Any = tiny_gpt2()
    plain = model.transformer.wpe.forward
    model.transformer.wpe.forward = lambda positions: plain(torch.arange(positions.shape[-1]).expand_as(positions))
    found = measure_separation(model, CPU)
    assert found.leak == found.noise == 0
    assert found.difference > 0.1
    assert not found.holds


def test_chunks_of_the_whole_row_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention in chunks longer than any row that is asked about, counted from the start of the pack."""
    model = next(entry for entry in model_types() if entry.name == "llama4_text").build()
    model.config.attention_chunk_size = 8192
    # As transformers did at first.
    monkeypatch.setattr(masking_utils, "remap_positions_for_packed_sequence", lambda mask, _: mask, raising=False)
    with pytest.raises(ConfigError, match="Llama4ForCausalLM with attn_implementation"):
        check_packs(model, CPU)
    assert model.config.attention_chunk_size == 8192


def test_models_that_take_no_positions() -> None:
    model: Any = tiny_llama()
    plain = model.forward
    model.forward = lambda input_ids, attention_mask=None, use_cache=None: plain(input_ids, attention_mask)
    with pytest.raises(ConfigError, match=r"TypeError for rows with position_ids that restart.*position_ids"):
        check_packs(model, CPU)


def test_compiled_models_are_not_compiled_for_the_question() -> None:
    torch._dynamo.reset()
    seen: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        seen.append(graph)
        return graph

    check_packs(torch.compile(tiny_llama(), backend=backend), CPU)
    assert not seen


def test_leaves_modes_and_random_numbers() -> None:
    model: Any = tiny_llama(attention_dropout=0.5)
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    before = torch.get_rng_state()
    check_packs(model, CPU)
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in model.modules()] == modes


def test_weights_cast_by_autocast_still_get_gradients() -> None:
    model: Any = tiny_llama().train()
    batch = packed(6, 5)
    with torch.autocast("cpu", torch.bfloat16):
        check_packs(model, CPU)
        loss = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits.sum()
    loss.backward()
    assert all(value.grad is not None for value in model.parameters())


def test_a_fit_refuses_before_it_learns(tmp_path: Path) -> None:
    module = PeraCausalLM(save_pretrained(tmp_path, tiny_opt()))
    with pytest.raises(ConfigError, match="set packing: false and padding_free: false"):
        make_trainer(tmp_path).fit(module, loader([packed(5, 9)]))
    assert module.global_step == 0


def test_looks_once_in_a_fit_and_at_packs_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    monkeypatch.setattr(causal_lm, "check_packs", lambda model, device: looked.append(device))
    module = PeraCausalLM(save_pretrained(tmp_path))
    ids = torch.randint(3, 64, (2, 5))
    padded = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    for _ in range(2):
        make_trainer(tmp_path).fit(module, loader([padded, packed(5, 9), packed(4, 4)]))
    assert looked == [CPU, CPU]
