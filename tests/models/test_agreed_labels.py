"""A classifier, its data, its checkpoints and its adapter folder agree on the names of the classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pera_lightning import (
    ClassificationDataModule,
    PeraConfig,
    PeraSequenceClassifier,
    inject_adapter,
    load_adapter,
    save_adapter,
)
from pera_lightning.errors import AdapterFileError, CheckpointError, ConfigError
from pera_lightning.export.lora.plain_lora import PeraTensors
from pera_lightning.export.merged.merged_shards import merge_shards
from pera_lightning.loading.pretrained import PretrainedSource
from pera_lightning.loading.pretrained_classifier import load_classifier
from pera_lightning.models.agreed_labels import agreed_labels
from tests.models.test_sequence_classifier import make_trainer
from tests.support.classifiers import save_encoder
from tests.support.trainers import SAFE_LOADING

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no:UserWarning"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning"),
]

NAMES = ["bad", "fair", "good"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_encoder(tmp_path_factory.mktemp("encoder") / "bert", hidden_dropout_prob=0.0)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    lines = [f"{'abc'[number % 3] * (1 + number % 5)},{NAMES[number % 3]}" for number in range(24)]
    path.write_text("\n".join(["text,label", *lines]) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, encoder: str, rows: str) -> tuple[Path, Any]:
    """Folder of a run with a checkpoint and an adapter, and its module."""
    folder = tmp_path_factory.mktemp("run")
    trainer = make_trainer(folder, enable_checkpointing=True)
    module = PeraSequenceClassifier(encoder, learning_rate=0.01)
    trainer.fit(module, ClassificationDataModule(rows, batch_size=8))
    trainer.save_checkpoint(folder / "last.ckpt")
    return folder, module


def test_the_folder_holds_the_names(trained: tuple[Path, Any], encoder: str) -> None:
    from transformers import AutoModelForSequenceClassification

    folder, module = trained
    assert module.labels == NAMES
    assert json.loads((folder / "adapter/adapter_config.json").read_text())["labels"] == NAMES
    card = (folder / "adapter/README.md").read_text()
    assert "| classes | bad, fair, good |" in card
    assert "num_labels=3)" in card
    plain = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=3)
    load_adapter(plain, folder / "adapter")
    assert plain.config.id2label == dict(enumerate(NAMES))
    assert plain.config.label2id == {name: number for number, name in enumerate(NAMES)}
    ids = torch.randint(6, 30, (3, 7))
    assert torch.equal(plain.eval()(input_ids=ids).logits, module.model.eval()(input_ids=ids).logits)


def test_a_module_with_the_options_in_a_checkpoint_knows_them(
    trained: tuple[Path, Any], tmp_path: Path, rows: str
) -> None:
    folder, _ = trained
    options = torch.load(folder / "last.ckpt", weights_only=True)["hyper_parameters"]
    # As load_from_checkpoint makes it.
    module = PeraSequenceClassifier(**options)
    assert module.labels == NAMES
    data = ClassificationDataModule(test_files=rows)
    make_trainer(tmp_path).test(module, data, verbose=False)
    assert data.labels == tuple(NAMES)


def test_load_from_checkpoint_predicts_as_trained(trained: tuple[Path, Any]) -> None:
    folder, module = trained
    file = folder / "last.ckpt"
    # The adapter and the head alone.
    assert all(".pera_" in key or ".classifier." in key for key in torch.load(file, weights_only=True)["state_dict"])
    loaded = PeraSequenceClassifier.load_from_checkpoint(file, **SAFE_LOADING)
    batch = {"input_ids": torch.randint(6, 30, (3, 7))}
    found, wanted = loaded.eval().predict_step(batch, 0), module.eval().predict_step(batch, 0)
    assert torch.equal(found["scores"], wanted["scores"])
    assert torch.equal(found["labels"], wanted["labels"])
    assert loaded.labels == NAMES
    assert loaded.model.config.id2label == dict(enumerate(NAMES))


def test_other_classes_or_another_order_are_refused(
    trained: tuple[Path, Any], tmp_path: Path, encoder: str, rows: str
) -> None:
    folder, _ = trained
    other = ["good", "fair", "bad"]
    for run in ("fit", "test"):
        trainer = make_trainer(tmp_path, max_epochs=2)
        data = ClassificationDataModule(rows, test_files=rows, labels=other)
        with pytest.raises(CheckpointError, match=r"\['bad', 'fair', 'good'\][\s\S]*\['good', 'fair', 'bad'\]"):
            getattr(trainer, run)(PeraSequenceClassifier(encoder), data, ckpt_path=folder / "last.ckpt", **SAFE_LOADING)
    model = trainer.lightning_module.model
    with pytest.raises(AdapterFileError, match=r"\['bad', 'fair', 'good'\][\s\S]*\['good', 'fair', 'bad'\]"):
        load_adapter(model, folder / "adapter")
    assert list(model.config.id2label.values()) == other


def test_a_run_goes_on_and_is_tested_from_its_checkpoint(
    trained: tuple[Path, Any], tmp_path: Path, encoder: str, rows: str
) -> None:
    folder, _ = trained
    trainer = make_trainer(tmp_path, max_epochs=2, enable_checkpointing=True)
    module = PeraSequenceClassifier(encoder, learning_rate=0.01)
    data = ClassificationDataModule(rows, test_files=rows, batch_size=8)
    trainer.fit(module, data, ckpt_path=folder / "last.ckpt", **SAFE_LOADING)
    assert trainer.global_step == 6
    assert trainer.test(module, data, verbose=False)[0].keys() >= {"test_accuracy"}


class Data:
    def __init__(self, num_labels: int | None = None, labels: Any = None) -> None:
        self.num_labels, self.labels = num_labels, labels


def test_what_is_agreed_on() -> None:
    assert agreed_labels(None, 2, None) == (2, None)
    assert agreed_labels(Data(1, ()), None, None) == (1, None)
    assert agreed_labels(Data(2, ("a", "b")), 2, None) == (2, ["a", "b"])
    assert agreed_labels(Data(2, (0, 1)), None, ["0", "1"]) == (2, ["0", "1"])
    for data, number, names, message in (
        (Data(), None, None, "set num_labels"),
        (Data(2, ("a", "b")), None, ["b", "a"], r"Data with \['a', 'b'\][\s\S]*\['b', 'a'\]"),
        (Data(3), 2, None, "num_labels=2, and Data with 3"),
        (None, 2, ["a", "b", "c"], "num_labels=2, and labels with 3"),
    ):
        with pytest.raises(ConfigError, match=message):
            agreed_labels(data, number, names)


def test_a_merge_of_files_writes_the_names(tmp_path: Path) -> None:
    stored = save_encoder(tmp_path / "roberta", "RobertaForSequenceClassification", num_labels=3)
    model, head = load_classifier(PretrainedSource(stored), num_labels=3, names=NAMES)
    inject_adapter(model, PeraConfig(rank=2, modules_to_save=head))
    save_adapter(model, tmp_path / "adapter")
    (tmp_path / "merged").mkdir()
    merge_shards(PeraTensors.of(tmp_path / "adapter"), Path(stored), tmp_path / "merged")
    merged, _ = load_classifier(PretrainedSource(str(tmp_path / "merged")), num_labels=3)
    assert merged.config.id2label == dict(enumerate(NAMES))
