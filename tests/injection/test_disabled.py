"""`adapter_disabled`: the base's own outputs for a time, whatever state the adapter is in."""

from __future__ import annotations

import pytest
import torch

from pera_lightning import PeraConfig, adapter_disabled, inject_adapter
from pera_lightning.errors import InjectionError
from pera_lightning.injection import adapted_layers
from tests.support.exports import logits
from tests.support.models import randomise_adapter, tiny_bert_classifier, tiny_llama, token_ids


def test_adapter_disabled_also_when_merged_and_after_an_exception() -> None:
    model = tiny_llama()
    ids = token_ids()
    expected = logits(model, ids)
    inject_adapter(model, PeraConfig(2))
    randomise_adapter(model)
    for _, layer in adapted_layers(model):
        layer.merge()
    merged = logits(model, ids)

    def fail_while_disabled() -> None:
        with adapter_disabled(model):
            assert torch.equal(logits(model, ids), expected)
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail_while_disabled()
    assert torch.equal(logits(model, ids), merged)
    with pytest.raises(InjectionError, match="no adapter"), adapter_disabled(tiny_llama()):
        pass


def test_adapter_disabled_nests() -> None:
    model = tiny_bert_classifier()
    ids = token_ids()
    expected = logits(model, ids)
    inject_adapter(model, PeraConfig(2, modules_to_save=["classifier"]))
    randomise_adapter(model)
    with torch.no_grad():
        model.classifier.weight.add_(1.0)
    trained = logits(model, ids)
    with adapter_disabled(model):
        with adapter_disabled(model):
            assert torch.equal(logits(model, ids), expected)
        assert torch.equal(logits(model, ids), expected)
    assert torch.equal(logits(model, ids), trained)
