from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from pera_lightning import PeraConfig, inject_adapter, merge_adapter
from pera_lightning.checkpoint import install_state_hooks
from pera_lightning.errors import InjectionError
from pera_lightning.injection import adapted_layers
from tests.support.models import randomise_adapter, tiny_gpt2, tiny_llama, token_ids


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("merged_before", [False, True])
def test_merged_model_is_plain_and_computes_the_same(make: object, merged_before: bool) -> None:
    model = make()
    kinds = [type(module) for module in model.modules()]
    keys = list(model.state_dict())
    inject_adapter(model, PeraConfig(2))
    randomise_adapter(model)
    ids = token_ids()
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        if merged_before:
            for _, layer in adapted_layers(model):
                layer.merge()
        assert merge_adapter(model) is model
        torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-5)
    assert [type(module) for module in model.modules()] == kinds
    assert list(model.state_dict()) == keys


def test_modules_saved_whole_are_plain_afterwards() -> None:
    model = tiny_llama()
    keys = list(model.state_dict())
    install_state_hooks(model)
    inject_adapter(model, PeraConfig(2, modules_to_save=["norm"]))
    with torch.no_grad():
        model.model.norm.weight.fill_(2.0)
    merge_adapter(model)
    assert list(model.state_dict()) == keys
    assert model.model.norm.weight.eq(2.0).all()
    inject_adapter(model, PeraConfig(2))
    assert not model.model.norm.weight.requires_grad


def test_reports_the_rounding_error(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_llama().to(torch.bfloat16)
    inject_adapter(model, PeraConfig(2))
    randomise_adapter(model)
    with caplog.at_level(logging.INFO, logger="pera_lightning"):
        merge_adapter(model)
    message = caplog.records[-1].getMessage()
    assert "merged 14 layers" in message
    error = float(message.split("weights ")[1].split(",")[0])
    assert 1e-4 < error < 5e-3  # bfloat16 keeps 8 bits


def test_all_or_nothing() -> None:
    model = tiny_llama()
    inject_adapter(model, PeraConfig(2))
    randomise_adapter(model)
    *_, (_, last) = adapted_layers(model)
    with torch.no_grad():
        last.pera_A[0, 0] = float("inf")
    before = [layer.base_layer.weight.clone() for _, layer in adapted_layers(model)]
    with pytest.raises(InjectionError, match="NaN or infinity"):
        merge_adapter(model)
    layers = [layer for _, layer in adapted_layers(model)]
    assert all(torch.equal(layer.base_layer.weight, weight) for layer, weight in zip(layers, before, strict=True))
    with pytest.raises(InjectionError, match="no adapter"):
        merge_adapter(nn.Linear(2, 2))


def test_a_tied_weight_is_refused() -> None:
    model = tiny_llama(tie_word_embeddings=True)
    inject_adapter(model, PeraConfig(2, target_modules=["lm_head"]))
    with pytest.raises(InjectionError, match="embed_tokens"):
        merge_adapter(model)
