"""Methods of PEFT in a comparison: the same layers, data and duties as those of ours."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from pera_lightning import PeraCallback, PeraConfig, PeraSequenceClassifier
from pera_lightning.analysis.method_table import read_runs
from pera_lightning.cli.compare.comparison_methods import METHODS, method_of
from pera_lightning.cli.compare.method_checks import check_peft_method
from pera_lightning.cli.compare.peft_callback import PeftCallback
from pera_lightning.cli.compare.peft_options import NEEDS_MORE, peft_options
from pera_lightning.data.glue import GlueDataModule
from pera_lightning.errors import ConfigError, InjectionError, PeraError, TrainingError
from pera_lightning.injection import adapted_layers
from tests.cli.test_main import run
from tests.conftest import ROOT
from tests.support.comparisons import write_fit
from tests.support.trainers import cpu_trainer

TYPES = [str(getattr(kind, "value", kind)) for kind in PEFT_TYPE_TO_CONFIG_MAPPING]
NARROW = {
    # What a narrow layer needs beside the defaults.
    "BOFT": {"boft_block_size": "4"},
    "C3A": {"block_size": "4"},
    "FOURIERFT": {"n_frequency": "8"},
    "GRALORA": {"gralora_k": "2"},
    "OFT": {"oft_block_size": "4", "r": "0"},
    "VBLORA": {"vector_length": "4", "num_vectors": "8", "topk": "2"},
    "WAVEFT": {"n_frequency": "8"},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fit(tmp_path_factory.mktemp("compare"))


def classifier(project: Path) -> PeraSequenceClassifier:
    return PeraSequenceClassifier(str(project / "model"), learning_rate=1e-2, warmup_ratio=0.0)


def data(project: Path) -> GlueDataModule:
    return GlueDataModule("cola", folder=str(project / "cola"), batch_size=8, max_train_rows=16)


def fitted(project: Path, folder: Path, method: dict[str, Any], **config: Any) -> tuple[pl.Trainer, Any, PeftCallback]:
    """A short fit with a method of PEFT in the classifier, its checkpoint in `folder`."""
    pl.seed_everything(0, verbose=False)
    callback = PeftCallback(PeraConfig(rank=2, **config), method, folder / "adapter")
    saving = ModelCheckpoint(folder, "last")
    trainer = cpu_trainer(folder, callback, saving, max_epochs=1)
    module = classifier(project)
    trainer.fit(module, datamodule=data(project))
    return trainer, module, callback


# Of BOFT, which has a kernel for GPUs, and of SHiRA, which uses sparse matrices.
@pytest.mark.filterwarnings("ignore:Failed to load the CUDA extension", "ignore:Sparse invariant checks")
@pytest.mark.filterwarnings("ignore:Setting boft_n_butterfly_factor")
@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind not in NEEDS_MORE])
def test_every_type_trains_and_comes_back_from_its_checkpoint(project: Path, tmp_path: Path, kind: str) -> None:
    method = peft_options({"peft_type": kind, **NARROW.get(kind, {})}, {"rank": 2})
    if kind == "ADAMSS" and find_spec("sklearn") is None:
        with pytest.raises(ConfigError, match="scikit-learn is required"):
            fitted(project, tmp_path, method, target_modules=["query", "value", "dense"])
        return
    trainer, module, _ = fitted(project, tmp_path, method, target_modules=["query", "value", "dense"])
    trained = {name: value.detach().clone() for name, value in module.state_dict().items()}
    stored = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    base = AutoModelForSequenceClassification.from_pretrained(project / "model")
    head = {f"model.{name}" for name, _ in base.named_parameters() if name.startswith("classifier.")}
    assert stored.keys() == trained.keys() > head
    assert not {name for name in stored if "base_layer" in name or "embeddings" in name}
    moved = [value for _, value in module.named_parameters() if value.requires_grad]
    assert any(bool(value.grad is None or value.grad.any()) for value in moved)
    with torch.no_grad():
        for value in moved:
            value.add_(1.0)
    trainer.test(module, datamodule=data(project), ckpt_path=str(tmp_path / "last.ckpt"), verbose=False)
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, trained[name], rtol=0, atol=0)


@pytest.fixture(scope="module")
def compared(project: Path) -> str:
    methods = ("lora", "peft_lora", "dora", "hira", "full")
    words = ("--learning_rates", "1e-2", "--seeds", 0, 1, "--out", "out")
    return run("compare", "--config", "fit.yaml", "--methods", *methods, *words, folder=project)


def test_methods_of_peft_are_compared_with_ours(project: Path, compared: str) -> None:
    runs = {(found.method, found.seed): found for found in read_runs(project / "out/runs.csv")}
    assert len(runs) == 10
    assert len({found.steps for found in runs.values()}) == 1
    assert runs["peft_lora", 0].trainable == runs["lora", 0].trainable < runs["dora", 0].trainable
    assert runs["hira", 0].trainable == runs["lora", 0].trainable < runs["full", 0].trainable
    for found in runs.values():
        # Float32 numbers, and a header.
        assert 4 * found.trainable <= found.disk_mb * 1e6 <= 4 * found.trainable + 12_000
        assert found.peak_mb > 100
        assert 0 < found.minutes < 1
    # The head starts and the rows come alike; A starts otherwise.
    for seed in (0, 1):
        assert abs(runs["peft_lora", seed].report - runs["lora", seed].report) < 0.1  # type: ignore[operator]


def test_what_a_comparison_takes_is_told_before_it_starts(compared: str) -> None:
    before, _, after = compared.partition("(1 of 10)")
    assert "What the comparison takes" in before
    told = [line.split("│")[1:4] for line in before.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row[:2]] for row in told][2:] == [
        ["dora", "2"],
        ["hira", "2"],
        ["full", "2"],
        ["all", "10"],
    ]
    assert "(10 of 10)" in after


# PEFT asks a model of transformers 5 for a name of before.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
def test_an_adapter_of_peft_loads_into_the_plain_model(project: Path, tmp_path: Path) -> None:
    method = peft_options({"use_dora": "true"}, {"rank": 2})
    trainer, module, _ = fitted(project, tmp_path, method)
    trainer.test(module, datamodule=data(project), verbose=False)
    base = AutoModelForSequenceClassification.from_pretrained(project / "model", num_labels=2)
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        expected = module.eval().built_model()(input_ids=ids).logits
        torch.testing.assert_close(loaded(input_ids=ids).logits, expected, rtol=0, atol=1e-6)
    names = load_file(tmp_path / "adapter/adapter_model.safetensors").keys()
    assert any("lora_magnitude_vector" in name for name in names)


def test_lora_of_peft_from_the_same_start_is_ours(project: Path, tmp_path: Path) -> None:
    """Not only alike on average: the same factors, rows and rate give the same training."""
    losses = {}
    starts: dict[str, torch.Tensor] = {}

    class Noted(pl.Callback):
        def __init__(self, name: str) -> None:
            self.found: list[float] = losses.setdefault(name, [])

        def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            for name, layer in adapted_layers(module):
                starts[name] = layer.pera_A.detach().clone()
            for name, layer in module.named_modules():
                if hasattr(layer, "lora_A"):
                    with torch.no_grad():
                        layer.lora_A["default"].weight.copy_(starts[name])
            # Both have drawn other numbers for their starts; dropout draws from here.
            torch.manual_seed(0)

        def on_train_batch_end(self, *words: Any) -> None:
            self.found.append(float(words[2]["loss"]))

    ours = PeraCallback(rank=2, order=1, adapter_dir=str(tmp_path / "ours"))
    theirs = PeftCallback(PeraConfig(rank=2), peft_options({}, {"rank": 2}), tmp_path / "theirs")
    for name, callback in (("ours", ours), ("theirs", theirs)):
        pl.seed_everything(0, verbose=False)
        trainer = cpu_trainer(tmp_path, callback, Noted(name), max_epochs=4, enable_checkpointing=False)
        trainer.fit(classifier(project), datamodule=data(project))
    assert len(losses["ours"]) == 8
    torch.testing.assert_close(losses["theirs"], losses["ours"], rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("text", "pera", "message"),
    [
        ("--peft.peft_type HRIA", {}, r"no method of that type.*HIRA"),
        ("--peft.peft_type ADALORA", {}, "update_and_allocate"),
        ("--peft.peft_type PROMPT_TUNING", {}, "a model of its own"),
        ("--peft.use_dorra true", {}, r"no such option.*--peft\.use_dora"),
        ("--peft.peft_type HIRA --peft.use_dora true", {}, "no such option"),
        ("--peft.r many", {}, r"does not take.*many"),
        ("--peft.target_modules query", {}, r"use --pera\.target_modules"),
        ("--peft.bias all", {}, "train the same parts"),
        ("--peft.trainable_token_indices [3,4]", {}, "train the same parts"),
        ("--peft.layer_replication [[0,2],[0,2]]", {}, "train the same parts"),
        ("--peft.alora_invocation_tokens [1]", {}, "train the same parts"),
        ("--peft.layers_to_transform [0]", {}, r"use --pera\.exclude_modules"),
        ("--peft.peft_type LN_TUNING", {}, "norms in place of linear layers"),
        ("--peft.runtime_config.ephemeral_gpu_offload true", {}, "no such option"),
        ("--peft.r -1", {}, r"1 or more"),
        ("--peft.r 3 --pera.order 3 --pera.coefficient_scale 30", {}, r"PEFT's and PERA's at a time"),
        ("--peft.init_lora_weights eva", {}, "pass over data"),
        ("--peft.peft_type LORA", {"bias": "all", "rank_pattern": {"query": 3}}, r"pera\.rank_pattern, pera\.bias"),
        ("--peft.peft_type LORA", {"init_from": "folder"}, r"pera\.init_from"),
    ],
)
def test_what_peft_cannot_do_is_refused_before_the_first_run(text: str, pera: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        check_peft_method("method", method_of(text), {"pera": {"rank": 2, **pera}, "model": {}})


def test_a_method_that_cannot_be_put_into_the_model_is_refused_by_its_trial(project: Path) -> None:
    methods = ("lora", "none=--peft.peft_type C3A --peft.block_size 5")
    words = ("--learning_rates", "1e-2", "--seeds", 0, "--out", "none")
    printed = run("compare", "--config", "fit.yaml", "--methods", *methods, *words, folder=project, ok=False)
    assert "PEFT cannot put C3A into the model" in printed
    assert "A trial of none failed before the first run" in printed
    assert "(1 of" not in printed
    assert not (project / "none/runs").exists()
    # Corrected, it is no other comparison.
    again = run("compare", "--config", "fit.yaml", "--methods", "lora", "none=--peft.r 2", *words, folder=project)
    assert "(2 of 2)" in again


def test_an_option_without_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no value"):
        method_of("--peft.use_dora --pera.rank 3")
    with pytest.raises(ConfigError, match="cannot be split into words"):
        method_of("--peft.r '4")


def test_a_number_of_iterations_of_pissa_is_taken() -> None:
    assert peft_options({"init_lora_weights": "pissa_niter_4"}, {})["init_lora_weights"] == "pissa_niter_4"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("peft_lora", {"r": 3, "lora_alpha": 6, "lora_dropout": 0.1, "use_rslora": False}),
        ("hira", {"r": 3, "hira_dropout": 0.1}),
        ("loha", {"r": 3, "alpha": 6}),
        ("delora", {"r": 3}),
    ],
)
def test_rank_alpha_and_dropout_are_those_of_the_fit(
    name: str, expected: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    method = method_of(METHODS[name])
    if method.peft["peft_type"] not in TYPES:
        # An older PEFT.
        with pytest.raises(ConfigError, match="no method of that type"):
            check_peft_method(name, method, {"pera": {}, "model": {}})
        return
    found = check_peft_method(name, method, {"pera": {"rank": 3, "alpha": 6, "dropout": 0.1}, "model": {}})
    assert {key: found[key] for key in expected} == expected
    said = capsys.readouterr().err
    assert ("pera.alpha 6" in said) == ("alpha" not in " ".join(expected))
    assert ("pera.dropout 0.1" in said) == ("dropout" not in " ".join(expected))


def test_layers_that_peft_passes_over_are_named(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peft.inject_adapter_in_model", lambda configuration, model, name: None)
    with pytest.raises(InjectionError, match=r"(?s)adapts other parts of the model.*left without an adapter"):
        fitted(project, tmp_path, {"peft_type": "LORA", "r": 2})


def test_a_checkpoint_of_another_method_is_refused(project: Path, tmp_path: Path) -> None:
    fitted(project, tmp_path / "one", {"peft_type": "LORA", "r": 2})
    trainer, module, _ = fitted(project, tmp_path / "two", {"peft_type": "LORA", "r": 2, "use_dora": True})
    with pytest.raises(PeraError, match="not of this method"):
        trainer.test(module, datamodule=data(project), ckpt_path=str(tmp_path / "one/last.ckpt"), verbose=False)


def test_a_diverging_method_of_peft_is_stopped(project: Path, tmp_path: Path) -> None:
    class Infinite(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
            with torch.no_grad():
                next(value for value in module.parameters() if value.requires_grad).fill_(float("inf"))

    callback = PeftCallback(PeraConfig(rank=2), {"peft_type": "LORA", "r": 2}, tmp_path / "adapter")
    trainer = cpu_trainer(tmp_path, callback, Infinite(), max_epochs=4, enable_checkpointing=False)
    with pytest.raises(TrainingError, match="not finite"):
        trainer.fit(classifier(project), datamodule=data(project))


def test_the_guide_lists_every_method() -> None:
    guide = (ROOT / "docs/guide/evaluation.md").read_text(encoding="utf-8")
    assert not [name for name in METHODS if f"`{name}`" not in guide]
