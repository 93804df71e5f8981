"""Fine-tuning a classifier: the head is trained with the adapter, and both are saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pera_lightning import PeraCallback, PeraSequenceClassifier, load_adapter
from pera_lightning.data.glue import GlueDataModule
from pera_lightning.errors import ConfigError, DataError, InjectionError
from pera_lightning.injection import adapted_layers, saved_modules
from pera_lightning.models.class_metrics import ClassMetrics
from tests.support.classifiers import save_encoder, write_task
from tests.support.trainers import SAFE_LOADING, cpu_trainer

# Older versions of torchmetrics warn so of the narrow outputs of tiny models.
CLOSE_TO_ZERO = pytest.mark.filterwarnings("ignore:The variance of predictions or target is close to zero:UserWarning")

# Lightning's remarks about fits without validation, and about a resumed run in another folder.
pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no:UserWarning"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_encoder(tmp_path_factory.mktemp("encoder") / "bert")


@pytest.fixture(scope="module")
def cola(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_task(tmp_path_factory.mktemp("glue") / "CoLA", "cola", 24)


@pytest.fixture(scope="module")
def stsb(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_task(tmp_path_factory.mktemp("glue") / "STS-B", "stsb", 16)


def make_trainer(folder: Path, *, rank: int = 2, **options: Any) -> pl.Trainer:
    adapters = PeraCallback(rank=rank, energy_every_n_steps=0, skip_checks=["untrained"])
    beside = options.pop("callbacks", [adapters])
    return cpu_trainer(folder, *beside, **{"max_epochs": 1, "enable_checkpointing": False, **options})


def loader(batches: list[dict[str, Tensor]]) -> DataLoader[Any]:
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def batch_of(labels: list[float] | list[int]) -> dict[str, Tensor]:
    ids = torch.randint(6, 30, (len(labels), 5))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor(labels)}


def weights_of(module: PeraSequenceClassifier) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.model.named_parameters() if value.requires_grad}


def test_learns_with_a_head_that_nobody_named(tmp_path: Path, folder: str, cola: str) -> None:
    module = PeraSequenceClassifier(folder, learning_rate=0.01)
    trainer = make_trainer(tmp_path, max_epochs=6)
    data = GlueDataModule("cola", cola, batch_size=8)
    trainer.fit(module, data)
    assert [name for name, _ in saved_modules(module)] == ["model.classifier"]
    trained = {name for name, value in module.model.named_parameters() if value.requires_grad}
    assert {name for name in trained if ".pera_" not in name} == {"classifier.weight", "classifier.bias"}
    metrics = trainer.test(module, data, verbose=False)[0]
    assert metrics.keys() == {"test_loss", "test_accuracy", "test_f1", "test_matthews"}
    assert metrics["test_accuracy"] == 1.0
    assert metrics["test_matthews"] == 1.0


def test_the_folder_of_the_adapter_holds_the_head_for_the_plain_model(tmp_path: Path, folder: str, cola: str) -> None:
    from transformers import AutoModelForSequenceClassification

    module = PeraSequenceClassifier(folder, learning_rate=0.01)
    make_trainer(tmp_path).fit(module, GlueDataModule("cola", cola, batch_size=8))
    plain = AutoModelForSequenceClassification.from_pretrained(folder)
    load_adapter(plain, tmp_path / "adapter")
    ids = torch.randint(6, 30, (3, 7))
    assert torch.equal(plain.eval()(input_ids=ids).logits, module.model.eval()(input_ids=ids).logits)


@CLOSE_TO_ZERO
def test_the_card_says_how_to_load_it(tmp_path: Path, folder: str, stsb: str) -> None:
    module = PeraSequenceClassifier(folder, learning_rate=0.01)
    make_trainer(tmp_path, max_steps=1).fit(module, GlueDataModule("stsb", stsb, batch_size=8))
    card = (tmp_path / "adapter" / "README.md").read_text()
    # The epoch was not finished.
    assert "| trained | 0.5 epochs, 1 steps |" in card
    code = card.split("```python")[1].split("```")[0].replace("num_labels=2", "num_labels=1")
    found: dict[str, Any] = {}
    exec(code.replace("this folder", str(tmp_path / "adapter")), found)
    ids = torch.randint(6, 30, (3, 7))
    logits = [model.eval()(input_ids=ids).logits for model in (found["model"], module.model)]
    assert torch.equal(*logits)


def test_a_resumed_run_equals_one_long_run(tmp_path: Path, cola: str) -> None:
    folder = save_encoder(tmp_path / "bert")  # with dropout

    def fit(epochs: int, name: str, **options: Any) -> pl.Trainer:
        pl.seed_everything(1, verbose=False)
        module = PeraSequenceClassifier(folder, learning_rate=0.01, schedule="constant")
        trainer = make_trainer(tmp_path / name, max_epochs=epochs, enable_checkpointing=True)
        trainer.fit(module, GlueDataModule("cola", cola, batch_size=8), **options)
        return trainer

    whole = fit(2, "whole")
    file = fit(1, "half").checkpoint_callback.best_model_path
    checkpoint = torch.load(file, weights_only=True)
    assert all(".pera_" in key or ".classifier." in key for key in checkpoint["state_dict"])
    resumed = fit(2, "resumed", ckpt_path=file, **SAFE_LOADING)
    expected = weights_of(whole.lightning_module)
    for name, value in weights_of(resumed.lightning_module).items():
        assert torch.equal(value, expected[name]), name
    # What the data said is kept.
    assert checkpoint["hyper_parameters"]["num_labels"] == 2


@pytest.mark.parametrize("classes", [2, 3])
def test_metrics_of_classes_are_over_all_rows(tmp_path: Path, folder: str, classes: int) -> None:
    batches = [batch_of([0, 1, 1, 0, 1, 0, 1]), batch_of([1, classes - 1])]
    module = PeraSequenceClassifier(folder, num_labels=classes)
    trainer = make_trainer(tmp_path)
    trainer.validate(module, loader(batches), verbose=False)
    logged = trainer.validate(module, loader(batches), verbose=False)[0]
    predictions = trainer.predict(module, loader(batches))
    predicted = torch.cat([prediction["labels"] for prediction in predictions])
    scores = torch.cat([prediction["scores"] for prediction in predictions])
    target = torch.cat([batch["labels"] for batch in batches])
    assert scores.shape == (9, classes)
    torch.testing.assert_close(scores.sum(dim=1), torch.ones(9))
    loss = -scores[range(9), target].log().mean()
    assert logged["val_loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert logged["val_accuracy"] == pytest.approx((predicted == target).float().mean().item())
    f1 = [_f1(predicted == number, target == number) for number in range(classes)]
    assert logged["val_f1"] == pytest.approx(f1[1] if classes == 2 else sum(f1) / classes)
    assert logged["val_matthews"] == pytest.approx(_matthews(predicted, target, classes), abs=1e-6)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("targets", [[0, 1, 1, 1], [0, 0, 0, 1], [1, 1, 1, 1]])
def test_always_the_same_class_correlates_with_nothing(classes: int, targets: list[int]) -> None:
    metric = ClassMetrics(classes).metrics()["matthews"]
    for predicted in range(2):
        metric.reset()
        metric.update(torch.full((4,), predicted), torch.tensor(targets))
        assert metric.compute() == 0


@pytest.mark.parametrize("labels", [[0, 5], [-1, 1], [0.0, 1.0]])
def test_labels_that_are_no_class(tmp_path: Path, folder: str, labels: list[float]) -> None:
    module = PeraSequenceClassifier(folder, num_labels=2)
    with pytest.raises(DataError, match=r"(?s)Labels do not fit.*torch\.(int64|float32) from .*0 to 1"):
        make_trainer(tmp_path).fit(module, loader([batch_of(labels)]))


def _f1(predicted: Tensor, target: Tensor) -> float:
    counted = (predicted.sum() + target.sum()).item()
    return 2 * (predicted & target).sum().item() / counted if counted else 0.0


def _matthews(predicted: Tensor, target: Tensor, classes: int) -> float:
    """The correlation of one-hot vectors, which is what Matthews' coefficient is."""
    one_hot = [torch.nn.functional.one_hot(values, classes).double() for values in (predicted, target)]
    centred = [values - values.mean(dim=0) for values in one_hot]
    product = (centred[0] * centred[1]).sum()
    norms = centred[0].norm() * centred[1].norm()
    return (product / norms).item() if norms > 0 else 0.0


@CLOSE_TO_ZERO
def test_regression_on_pairs(tmp_path: Path, folder: str, stsb: str) -> None:
    module = PeraSequenceClassifier(folder, learning_rate=0.02)
    trainer = make_trainer(tmp_path, max_epochs=8)
    data = GlueDataModule("stsb", stsb, batch_size=4)
    trainer.fit(module, data)
    logged = trainer.test(module, data, verbose=False)[0]
    assert logged.keys() == {"test_loss", "test_pearson", "test_spearman"}
    predicted = torch.cat([prediction["scores"] for prediction in trainer.predict(module, data)])
    target = torch.tensor([row["labels"] for row in data.test_dataloader().dataset])
    assert predicted.shape == target.shape
    assert logged["test_loss"] == pytest.approx((predicted - target).square().mean().item(), rel=1e-4)
    pearson = torch.corrcoef(torch.stack([predicted, target]))[0, 1]
    assert logged["test_pearson"] == pytest.approx(pearson.item(), abs=1e-4)
    # Better than the mean: the score is in the texts.
    assert logged["test_loss"] < target.var(unbiased=False)
    assert logged["test_spearman"] > 0.5


def test_a_stored_head_of_another_size_is_replaced(tmp_path: Path) -> None:
    stored = save_encoder(tmp_path / "roberta", "RobertaForSequenceClassification", num_labels=2)
    for number, same in ((2, True), (3, False)):
        module = PeraSequenceClassifier(stored, num_labels=number)
        module.configure_model()
        again = PeraSequenceClassifier(stored, num_labels=number)
        again.configure_model()
        first, second = (each.model.classifier.out_proj.weight for each in (module, again))
        assert first.shape[0] == number
        assert torch.equal(first, second) == same
        # Both parts of the head, and trained whole wherever it came from.
        assert module.modules_to_save == ("classifier",)


def test_a_pooler_without_weights_is_trained_too(tmp_path: Path) -> None:
    from transformers import BertForMaskedLM

    encoder = save_encoder(tmp_path / "bert")
    BertForMaskedLM.from_pretrained(encoder).save_pretrained(encoder)
    module = PeraSequenceClassifier(encoder, num_labels=2)
    make_trainer(tmp_path).fit(module, loader([batch_of([0, 1])]))
    assert {name for name, _ in saved_modules(module)} == {"model.classifier", "model.bert.pooler"}
    assert all("pooler" not in name for name, _ in adapted_layers(module))


def test_a_body_without_its_weights_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    encoder = save_encoder(tmp_path / "bert")
    file = tmp_path / "bert" / "model.safetensors"
    kept = {name: value for name, value in load_file(file).items() if "layer.1.output.dense" not in name}
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks 2 weights .* below its head[\s\S]*layer\.1\.output\.dense\.bias"):
        PeraSequenceClassifier(encoder, num_labels=2).configure_model()


def test_a_decoder_is_told_what_pads(tmp_path: Path) -> None:
    from tests.support.models import tiny_llama
    from tests.support.pretrained import save_pretrained

    module = PeraSequenceClassifier(save_pretrained(tmp_path / "llama", tiny_llama()), num_labels=2)
    batch = batch_of([0, 1])
    make_trainer(tmp_path, max_steps=1, max_epochs=-1).fit(module, loader([batch]))
    assert [name for name, _ in saved_modules(module)] == ["model.score"]
    padded = {**batch, "attention_mask": batch["attention_mask"].clone(), "input_ids": batch["input_ids"].clone()}
    padded["input_ids"][0, 3:], padded["attention_mask"][0, 3:] = 0, 0
    short = {name: value[:1, :3] for name, value in batch.items() if name != "labels"}
    module.eval()
    outputs = module.predict_step(padded, 0)["scores"][:1]
    torch.testing.assert_close(outputs, module.predict_step(short, 0)["scores"])


def test_without_a_callback_every_parameter_is_trained(tmp_path: Path, folder: str, cola: str) -> None:
    module = PeraSequenceClassifier(folder, gradient_checkpointing=True)
    make_trainer(tmp_path, callbacks=[]).fit(module, GlueDataModule("cola", cola, batch_size=12))
    assert all(value.requires_grad for value in module.model.parameters())


def test_the_number_of_labels_is_agreed_on(tmp_path: Path, folder: str, cola: str) -> None:
    with pytest.raises(ConfigError, match="set num_labels"):
        make_trainer(tmp_path).fit(PeraSequenceClassifier(folder), loader([batch_of([0, 1])]))
    with pytest.raises(ConfigError, match="num_labels=3, and GlueDataModule with 2"):
        make_trainer(tmp_path).fit(PeraSequenceClassifier(folder, num_labels=3), GlueDataModule("cola", cola))
    with pytest.raises(ConfigError, match="num_labels"):
        PeraSequenceClassifier(folder, num_labels=0)


def test_before_it_is_built(folder: str) -> None:
    module = PeraSequenceClassifier(folder, num_labels=2)
    assert module.base_model_name == folder
    with pytest.raises(InjectionError, match="a PeraSequenceClassifier that no trainer"):
        module.training_step(batch_of([0, 1]), 0)
    with pytest.raises(ConfigError, match="cannot be loaded"):
        PeraSequenceClassifier("no-such/model-at-all", num_labels=2).configure_model()
