"""Merging classifiers: the files of their bases hold a bare encoder, a head of another task, or a classifier."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pera_lightning import PeraConfig, export_merged, inject_adapter, save_adapter
from pera_lightning.errors import ConfigError
from pera_lightning.loading.pretrained import PretrainedSource
from pera_lightning.loading.pretrained_classifier import load_classifier
from tests.support.base_folders import SHARD, all_tensors, digests, merge_files
from tests.support.models import randomise_adapter
from tests.support.pretrained import character_tokenizer
from tests.support.transformers_models import class_of_transformers, transformers_model

KINDS = {
    "Bert": "BertForMaskedLM",
    "Roberta": "RobertaForMaskedLM",
    "DistilBert": "DistilBertForMaskedLM",
    "DebertaV2": "DebertaV2ForMaskedLM",
    "ModernBert": "ModernBertForMaskedLM",
    "Llama": "LlamaForCausalLM",
    "GPT2": "GPT2LMHeadModel",
}
"""Kind of model -> what it is pretrained as."""
NAMES = ["bad", "fair", "good"]
IDS = torch.tensor([[7, 9, 12, 30, 8, 11], [10, 9, 6, 0, 0, 0]])
BATCH = {"input_ids": IDS, "attention_mask": (IDS != 0).long()}


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model.eval()(**BATCH).logits


def save_base(folder: Path, kind: str, form: str, **options: object) -> Path:
    """Write a base as its bare body, as it was pretrained, or as a classifier of two classes; in several files."""
    torch.manual_seed(0)
    model: Any = transformers_model(f"{kind}ForSequenceClassification", **options)
    if form == "bare":
        model = model.base_model
    elif form == "pretrained":
        model = class_of_transformers(KINDS[kind])(model.config)
    model.save_pretrained(folder, max_shard_size=SHARD)
    return folder


def adapt(base: Path, folder: Path, *, names: list[str] = NAMES, saved: list[str] | None = None) -> nn.Module:
    """A classifier on a base as `PeraSequenceClassifier` makes and saves it, trained."""
    model, head = load_classifier(PretrainedSource(str(base)), num_labels=len(names), names=names)
    model.config.pad_token_id = 0
    inject_adapter(model, PeraConfig(2, modules_to_save=list(head) if saved is None else saved))
    randomise_adapter(model, 0.1)
    save_adapter(model, folder, base_model=str(base))
    return model


@pytest.mark.parametrize("form", ["bare", "pretrained", "classifier"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_merged_folder_is_a_plain_classifier(tmp_path: Path, kind: str, form: str) -> None:
    base = save_base(tmp_path / "base", kind, form)
    before = digests(base)
    model = adapt(base, tmp_path / "adapter")
    merge_files(tmp_path / "adapter", base, tmp_path / "out")
    merged, loading = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    torch.testing.assert_close(logits(merged), logits(model), rtol=1e-4, atol=1e-6)
    assert merged.config.id2label == dict(enumerate(NAMES))
    assert merged.config.label2id == {name: number for number, name in enumerate(NAMES)}
    # Named as transformers itself would name it: nothing is guessed, and no head of another task is carried along.
    assert not any(loading.values())
    assert all_tensors(tmp_path / "out").keys() == merged.state_dict().keys()
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["architectures"] == [f"{kind}ForSequenceClassification"]
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == merged.state_dict().keys()
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in merged.state_dict().values())
    assert digests(base) == before


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("kind", ["Bert", "Llama"])
def test_it_is_compared_and_pads_as_it_was_trained(tmp_path: Path, kind: str, in_memory: bool) -> None:
    padding = {} if kind == "Bert" else {"pad_token_id": None}
    base = save_base(tmp_path / "base", kind, "bare", **padding)
    # With nothing to pad with but the end token.
    tokenizer = character_tokenizer(pad_token=None, eos_token="<pad>")
    tokenizer.save_pretrained(base)
    model = adapt(base, tmp_path / "adapter")
    report = export_merged(tmp_path / "adapter", tmp_path / "out", in_memory=in_memory)
    assert report.certificate is not None
    assert report.certificate.max_difference < 1e-6 < 1e-3 < report.certificate.max_change
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(merged), logits(model), rtol=1e-4, atol=1e-6)
    assert merged.config.id2label == dict(enumerate(NAMES))
    read = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert read(["abc", "a"], padding=True)["input_ids"][1][1:] == [0, 0]


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_regression_is_called_one(tmp_path: Path, in_memory: bool) -> None:
    base = save_base(tmp_path / "base", "Roberta", "bare")
    model = adapt(base, tmp_path / "adapter", names=["LABEL_0"])
    export_merged(tmp_path / "adapter", tmp_path / "out", in_memory=in_memory, compare=False)
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(merged), logits(model), rtol=1e-4, atol=1e-6)
    assert merged.config.problem_type == "regression"
    assert merged.config.num_labels == 1


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize(
    ("kind", "form", "saved", "words"),
    [
        ("DistilBert", "bare", ["classifier"], "without pre_classifier.bias, pre_classifier.weight "),
        ("Bert", "pretrained", ["classifier"], "without bert.pooler.dense.bias, bert.pooler.dense.weight "),
        ("Roberta", "classifier", ["classifier.dense"], "without classifier.out_proj.bias, classifier.out_proj.weight"),
    ],
)
def test_a_head_that_nobody_has_is_refused(
    tmp_path: Path, kind: str, form: str, saved: list[str], words: str, in_memory: bool
) -> None:
    base = save_base(tmp_path / "base", kind, form)
    adapt(base, tmp_path / "adapter", saved=saved)
    with pytest.raises(ConfigError, match=f"{words}[\\s\\S]*modules_to_save"):
        export_merged(tmp_path / "adapter", tmp_path / "out", in_memory=in_memory)
    assert not (tmp_path / "out").exists()


def test_a_stored_head_need_not_be_trained(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", "DistilBert", "classifier")
    model = adapt(base, tmp_path / "adapter", names=["no", "yes"], saved=["classifier"])
    merge_files(tmp_path / "adapter", base, tmp_path / "out")
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(merged), logits(model), rtol=1e-4, atol=1e-6)
