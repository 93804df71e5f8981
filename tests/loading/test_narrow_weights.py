"""16-bit embeddings and head under 32-bit activations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pera_lightning import PeraConfig, inject_adapter
from pera_lightning.injection import quantize_model
from pera_lightning.loading import pretrained
from pera_lightning.loading.narrow_weights import NarrowEmbedding, NarrowLinear, widen_activations
from pera_lightning.loading.pretrained import PretrainedSource, load_causal_lm
from pera_lightning.models.answer_loss import answer_logits, answer_loss, chunked_answer_loss, ends_in_frozen_head
from tests.support.models import randomise_adapter, tiny_gpt2, tiny_llama, token_ids
from tests.support.pretrained import character_tokenizer, padded_batch, save_pretrained


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("make", [tiny_llama, lambda **options: tiny_gpt2()])
def test_computes_in_float32_with_the_weights_stored_in_bfloat16(make: Any, tied: bool) -> None:
    model = make(tie_word_embeddings=tied).to(torch.bfloat16)
    quantize_model(model, "nf4", compute_dtype=torch.float32)
    exact = make(tie_word_embeddings=tied)
    exact.load_state_dict({name: value.float() for name, value in _plain_state(model, exact).items()})
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    widen_activations(model, torch.float32)
    ids = token_ids()
    torch.testing.assert_close(model(ids).logits, exact(ids).logits, rtol=1e-5, atol=1e-6)
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert table.weight.dtype == head.weight.dtype == torch.bfloat16
    assert (head.weight is table.weight) == tied


def _plain_state(model: Any, exact: Any) -> dict[str, torch.Tensor]:
    from pera_lightning.base_layers import base_of

    state = {}
    for name in exact.state_dict():
        path, _, key = name.rpartition(".")
        layer = model.get_submodule(path)
        base = base_of(layer)
        quantised = base is not None and base.quantization(layer) is not None and key == "weight"
        # A quantised Conv1D holds its weight as (out, in).
        found = base.weight(layer) if quantised else layer.state_dict()[key]
        state[name] = found.T if quantised and type(exact.get_submodule(path)).__name__ == "Conv1D" else found
    return state


def test_the_loss_is_chunked_all_the_same() -> None:
    model = tiny_llama().to(torch.bfloat16)
    quantize_model(model, "nf4", compute_dtype=torch.float32)
    widen_activations(model, torch.float32)
    inject_adapter(model, PeraConfig(2))
    randomise_adapter(model, 0.05)
    assert ends_in_frozen_head(model)
    batch = padded_batch(character_tokenizer(), [("aa? ", "alpha"), ("b? ", "beta")])
    torch.testing.assert_close(
        chunked_answer_loss(model, batch), answer_loss(*answer_logits(model, batch)), rtol=1e-5, atol=1e-6
    )


def test_scaled_embeddings_are_left_alone() -> None:
    class Scaled(torch.nn.Embedding):
        pass

    model = tiny_llama().to(torch.bfloat16)
    model.set_input_embeddings(Scaled(64, 32, dtype=torch.bfloat16))
    widen_activations(model, torch.float32)
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(("native", "widened"), [("float32", True), ("bfloat16", False)])
def test_where_the_cpu_has_no_bf16_instructions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, native: str, widened: bool
) -> None:
    monkeypatch.setattr(pretrained, "native_dtype", lambda: native)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    folder = PretrainedSource(save_pretrained(tmp_path))
    model = load_causal_lm(folder, dtype="bfloat16", quantization="nf4-dq")
    assert isinstance(model.get_input_embeddings(), NarrowEmbedding) == widened
    assert isinstance(model.get_output_embeddings(), NarrowLinear) == widened
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16
    layer = model.model.layers[0].mlp.up_proj
    assert layer.compute_dtype == (torch.float32 if widened else torch.bfloat16)
    assert model.model.norm.weight.dtype == (torch.float32 if widened else torch.bfloat16)
    floating = load_causal_lm(folder, dtype="bfloat16")
    assert {value.dtype for value in floating.parameters()} == {torch.bfloat16}
