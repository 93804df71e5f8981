"""Exports of heads and other modules that are saved whole."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, DistilBertConfig, DistilBertForSequenceClassification

from pera_lightning import PeraConfig, export_lora, inject_adapter, inject_lora, save_adapter
from pera_lightning.export.lora.peft_format import read_peft
from pera_lightning.loading.pretrained import PretrainedSource
from pera_lightning.loading.pretrained_classifier import load_classifier
from tests.support.classifiers import save_encoder
from tests.support.exports import adapted, by_peft, logits
from tests.support.models import randomise_adapter, tied_llama, tiny_bert_classifier, tiny_llama, token_ids

# PEFT looks at an attribute of transformers that is about to be renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.mark.parametrize(("options", "task"), [({}, None), ({"modules_to_save": ["classifier"]}, "SEQ_CLS")])
def test_task_of_a_classifier(options: dict[str, Any], task: str | None, tmp_path: Path) -> None:
    # With SEQ_CLS, PEFT wants a head in the file.
    model, ids = adapted(tiny_bert_classifier, **options), token_ids()
    expected = logits(model, ids)
    export_lora(model, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["task_type"] == task
    torch.testing.assert_close(by_peft(model, tmp_path, ids), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_both_sides_of_a_tie_may_be_saved_whole(tmp_path: Path) -> None:
    model, ids = adapted(tied_llama, modules_to_save=["embed_tokens", "lm_head"]), token_ids()
    with torch.no_grad():
        model.lm_head.weight.normal_()
    expected = logits(model, ids)
    export_lora(model, tmp_path)
    torch.testing.assert_close(by_peft(model, tmp_path, ids), expected, rtol=1e-5, atol=1e-5)


def tiny_distilbert() -> nn.Module:
    config = DistilBertConfig(vocab_size=64, dim=32, hidden_dim=48, n_layers=2, n_heads=4, num_labels=3)
    return DistilBertForSequenceClassification(config)


class WithHead(nn.Module):
    """A head beside the model."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tiny_llama()
        self.head = nn.Linear(64, 3)

    def forward(self, input_ids: Tensor) -> Any:
        return SimpleNamespace(logits=self.head(self.net(input_ids).logits))


def test_what_is_trained_beside_the_model_belongs_to_the_module_around_it(tmp_path: Path) -> None:
    model, ids = adapted(WithHead, modules_to_save=["head"], target_modules=["q_proj"]), token_ids()
    with torch.no_grad():
        model.head.weight.normal_()
    expected = logits(model, ids)
    export_lora(model, tmp_path)
    # PEFT takes `head` for `lm_head` too unless it is told more.
    torch.testing.assert_close(by_peft(model, tmp_path, ids), expected, rtol=1e-5, atol=1e-5)
    model = WithHead()
    inject_lora(model, tmp_path)
    assert torch.equal(model.head.weight, read_peft(tmp_path).saved["head.weight"])


def test_a_head_whose_name_ends_another(tmp_path: Path) -> None:
    # DistilBERT's pre_classifier beside its classifier.
    model, ids = adapted(tiny_distilbert, modules_to_save=["classifier"]), token_ids()
    with torch.no_grad():
        model.classifier.weight.normal_()
    expected = logits(model, ids)
    export_lora(model, tmp_path)
    torch.testing.assert_close(by_peft(model, tmp_path, ids), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "DistilBert", "DebertaV2", "ModernBert", "Llama"])
def test_peft_loads_the_head_that_a_classifier_trained(kind: str, tmp_path: Path) -> None:
    name = f"{kind}ForSequenceClassification"
    base = save_encoder(tmp_path / "base", name)
    model, head = load_classifier(PretrainedSource(base), num_labels=3)
    inject_adapter(model, PeraConfig(2, modules_to_save=list(head)))
    randomise_adapter(model, 0.1)
    with torch.no_grad():
        for part in head:
            for value in model.get_submodule(part).parameters():
                value.add_(torch.randn_like(value))
    save_adapter(model, tmp_path / "adapter", base_model=base)
    export_lora(tmp_path / "adapter", tmp_path / "lora")
    plain, ids = (
        AutoModelForSequenceClassification.from_pretrained(base, num_labels=3, ignore_mismatched_sizes=True),
        token_ids(),
    )
    exported = PeftModel.from_pretrained(plain, tmp_path / "lora").eval()
    torch.testing.assert_close(logits(exported, ids), logits(model, ids), rtol=1e-5, atol=1e-5)
