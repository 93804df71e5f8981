"""`load_adapted_model` of a classifier's adapter, and a set of such adapters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from pera_lightning import AdapterSet, PeraConfig, inject_adapter, load_adapted_model, save_adapter
from pera_lightning.errors import ConfigError
from pera_lightning.evaluation.answerer import Answerer
from pera_lightning.loading.pretrained import PretrainedSource
from pera_lightning.loading.pretrained_classifier import load_classifier
from tests.support.classifiers import save_encoder
from tests.support.models import randomise_adapter

NAMES = {"mood": ("bad", "fair", "good"), "topic": ("music", "news", "weather")}
IDS = torch.arange(6, 27).view(3, 7)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_encoder(tmp_path_factory.mktemp("encoder") / "bert")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, encoder: str) -> tuple[Path, dict[str, torch.Tensor]]:
    """A folder with an adapter for each of `NAMES`, and the logits that belong to it."""
    folder, logits = tmp_path_factory.mktemp("adapters"), {}
    for name, classes in NAMES.items():
        model, head = load_classifier(PretrainedSource(encoder), num_labels=3, names=classes)
        inject_adapter(model, PeraConfig(2, modules_to_save=list(head)))
        randomise_adapter(model, 0.1)
        save_adapter(model, folder / name, base_model=encoder)
        logits[name] = model(input_ids=IDS).logits.detach()
    return folder, logits


def test_it_has_the_head_and_the_classes(adapters: tuple[Path, dict[str, torch.Tensor]]) -> None:
    folder, logits = adapters
    for name, classes in NAMES.items():
        model, tokenizer = load_adapted_model(folder / name)
        assert type(model).__name__ == "BertForSequenceClassification"
        assert torch.equal(model(input_ids=IDS).logits, logits[name])
        assert model.config.id2label == dict(enumerate(classes))
        assert model.config.pad_token_id == tokenizer.pad_token_id


def test_the_base_alone_has_no_head(adapters: tuple[Path, dict[str, torch.Tensor]]) -> None:
    with pytest.raises(ConfigError, match=r"without classifier\.bias, classifier\.weight"):
        load_adapted_model(adapters[0] / "mood", without_adapter=True)


def test_a_classifier_answers_nobody(adapters: tuple[Path, dict[str, torch.Tensor]]) -> None:
    options = {"base": None, "gguf_file": None, "system_prompt": None, "use_chat_template": None}
    beside = {"max_new_tokens": 4, "without_adapter": False, "merged": False, "dtype": "auto"}
    with pytest.raises(ConfigError, match=r"an adapter of a BertForSequenceClassification[\s\S]*ForCausalLM"):
        Answerer(str(adapters[0] / "mood"), **options, **beside)  # type: ignore[arg-type]


def test_the_classes_follow_the_adapter_in_place(encoder: str, adapters: tuple[Path, dict[str, torch.Tensor]]) -> None:
    folder, logits = adapters
    model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=3)
    own = dict(model.config.id2label)
    several = AdapterSet(model)
    for name in NAMES:
        several.load(name, folder / name)
        assert model.config.id2label == own
    several.mix("both", {"mood": 0.5, "topic": 0.5})
    several.mix("half", {"mood": 0.5})
    for name, classes in (*NAMES.items(), ("half", NAMES["mood"]), *NAMES.items()):
        several.switch(name)
        assert model.config.id2label == dict(enumerate(classes))
        assert model.config.label2id == {one: number for number, one in enumerate(classes)}
        if name in logits:
            assert torch.equal(model(input_ids=IDS).logits, logits[name])
    with several.using("mood"):
        assert model.config.id2label[0] == "bad"
    assert model.config.id2label[0] == "music"
    for name in (None, "both"):
        several.switch(name)
        assert model.config.id2label == own


def test_an_adapter_that_the_model_held_keeps_its_classes(adapters: tuple[Path, dict[str, torch.Tensor]]) -> None:
    model, _ = load_adapted_model(adapters[0] / "mood")
    several = AdapterSet(model, name="mood")
    several.load("topic", adapters[0] / "topic")
    for name in ("topic", "mood"):
        several.switch(name)
        assert list(model.config.id2label.values()) == list(NAMES[name])


def test_a_compiled_classifier_is_named_too(encoder: str, adapters: tuple[Path, dict[str, torch.Tensor]]) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=3)
    several = AdapterSet(torch.compile(model, backend="eager"))
    several.load("mood", adapters[0] / "mood")
    several.switch("mood")
    assert list(model.config.id2label.values()) == list(NAMES["mood"])
