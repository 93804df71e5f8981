"""Training over 4-bit and 8-bit bases: every way in, precisions, checkpoints, resume."""

from __future__ import annotations

import copy
import logging
import re
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import BitsandbytesPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from pera_lightning import PeraCallback, PeraCausalLM, PeraConfig, inject_adapter, load_adapter, quantize_model
from pera_lightning.errors import CheckpointError, ConfigError
from pera_lightning.injection import adapted_layers, stored_bytes
from pera_lightning.models.answer_loss import answer_logits, answer_loss
from tests.support.models import Regressor, randomise_adapter, tiny_llama, token_ids
from tests.support.pretrained import character_tokenizer, padded_batch, save_pretrained
from tests.support.quantized import bits, same_bits
from tests.support.trainers import SAFE_LOADING, cpu_trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no:UserWarning"),
    # Lightning's remarks about tests that resume in another folder or with fewer callbacks than the first run.
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning"),
]

KINDS = ("nf4", "nf4-dq", "fp4", "int8")
QUESTIONS = [("aaaaa? ", "alpha"), ("bbb? ", "beta"), ("cccccc? ", "gamma [1]"), ("dd? ", "delta {2}")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(1)
    return save_pretrained(tmp_path_factory.mktemp("pretrained"), tiny_llama(hidden_size=64, intermediate_size=96))


@pytest.fixture(scope="module")
def batches() -> list[dict[str, Tensor]]:
    tokenizer = character_tokenizer()
    return [padded_batch(tokenizer, QUESTIONS[:2]), padded_batch(tokenizer, QUESTIONS[2:])]


def loader(batches: list[dict[str, Tensor]]) -> DataLoader[Any]:
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


class SomebodysModule(pl.LightningModule):
    """A LightningModule that knows nothing of PERA; `quantise` says how its model gets its 4 bits."""

    def __init__(self, folder: str, quantise: str) -> None:
        super().__init__()
        self.folder, self.quantise = folder, quantise
        self.net: Any = None

    def configure_model(self) -> None:
        if self.net is not None:
            return
        options = {}
        if self.quantise == "from_pretrained":
            options["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
        self.net = AutoModelForCausalLM.from_pretrained(self.folder, **options).train()
        if self.quantise == "in place":
            quantize_model(self.net, "nf4")

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = answer_loss(*answer_logits(self.net, batch))
        self.log("train_loss", loss, batch_size=1)
        return loss

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("test_loss", answer_loss(*answer_logits(self.net, batch)), batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW((p for p in self.parameters() if p.requires_grad), lr=0.01)


class LossRecorder(pl.Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *args: Any) -> None:
        self.losses.append(outputs["loss"].item())


def make_trainer(folder: Path, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    keeps = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    return cpu_trainer(folder, *callbacks, **{"max_epochs": 4, "enable_checkpointing": keeps, **options})


def pera_module(folder: str, quantization: Any, **options: Any) -> PeraCausalLM:
    settings: dict[str, Any] = {"learning_rate": 0.02, "schedule": "constant"}
    return PeraCausalLM(folder, quantization=quantization, **{**settings, **options})


@pytest.mark.parametrize("quantise", ["from_pretrained", "in place"])
def test_somebodys_module(tmp_path: Path, folder: str, batches: Any, quantise: str) -> None:
    module, record = SomebodysModule(folder, quantise), LossRecorder()
    module.configure_model()
    before = bits(module.net)
    checkpoint = ModelCheckpoint(tmp_path / "checkpoints", save_last=True)
    trainer = make_trainer(tmp_path, PeraCallback(rank=2), record, checkpoint)
    trainer.fit(module, loader(batches))
    assert min(record.losses[-2:]) < record.losses[0]
    after = {name.replace(".base_layer", ""): value for name, value in bits(module.net).items()}
    assert same_bits(after, before)
    assert {layer.quantization for _, layer in adapted_layers(module)} == {"nf4"}
    stored = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert len(stored) == 14 * 3
    assert all(".pera_" in key for key in stored)
    [expected] = trainer.test(module, loader(batches), verbose=False)
    fresh = SomebodysModule(folder, quantise)
    again = make_trainer(tmp_path, PeraCallback(rank=2))
    path = str(tmp_path / "checkpoints" / "last.ckpt")
    assert again.test(fresh, loader(batches), ckpt_path=path, **SAFE_LOADING, verbose=False) == [expected]


@pytest.mark.parametrize("quantization", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pera_causal_lm(tmp_path: Path, folder: str, batches: Any, quantization: str, dtype: str) -> None:
    module, record = pera_module(folder, quantization, dtype=dtype), LossRecorder()
    make_trainer(tmp_path, PeraCallback(rank=2), record).fit(module, loader(batches))
    assert min(record.losses[-2:]) < record.losses[0]
    assert {layer.quantization for _, layer in adapted_layers(module)} == {quantization}
    assert module.model.lm_head.weight.dtype == getattr(torch, dtype)
    assert module.model.model.embed_tokens.weight.dtype == getattr(torch, dtype)
    # The folder loads into the same base without Lightning.
    plain = pera_module(folder, quantization, dtype=dtype)
    plain.configure_model()
    load_adapter(plain.model, tmp_path / "adapter")
    ids = token_ids()
    with torch.no_grad():
        assert torch.equal(plain.model.eval()(ids).logits, module.model.eval()(ids).logits)


@pytest.mark.parametrize("quantization", ["nf4-dq", "int8"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_precisions(tmp_path: Path, folder: str, batches: Any, quantization: str, precision: Any) -> None:
    module, record = pera_module(folder, quantization, dtype="float32"), LossRecorder()
    make_trainer(tmp_path, PeraCallback(rank=2), record, precision=precision).fit(module, loader(batches))
    assert min(record.losses[-2:]) < record.losses[0]
    _, layer = next(adapted_layers(module))
    assert layer.quantization == quantization
    assert layer.pera_A.dtype == (torch.bfloat16 if precision == "bf16-true" else torch.float32)


@pytest.mark.parametrize("mode", ["nf4", "nf4-dq", "fp4", "int8"])
def test_lightnings_plugin_replaces_the_layers_below_the_adapters(folder: str, mode: Any, batches: Any) -> None:
    """Its step of replacing, which a Trainer runs after the injection and on CUDA only."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    inject_adapter(model, PeraConfig(2))
    factors = {name: value.clone() for name, value in model.named_parameters() if ".pera_" in name}
    plugin = BitsandbytesPrecision(mode, torch.float16 if mode == "int8" else torch.float32, {"lm_head"})
    plugin.convert_module(model)
    model.to("cpu")  # quantises
    layers = dict(adapted_layers(model))
    assert len(layers) == 14
    assert {layer.quantization for layer in layers.values()} == {mode}
    assert type(model.lm_head) is nn.Linear
    kept = {name: value for name, value in model.named_parameters() if ".pera_" in name}
    assert kept.keys() == factors.keys()
    for name, value in kept.items():
        assert type(value) is nn.Parameter
        assert torch.equal(value, factors[name])
    assert [name for name, value in model.named_parameters() if value.requires_grad] == list(kept)
    randomise_adapter(model, 0.05)
    answer_loss(*answer_logits(model.train(), batches[0])).backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in kept.values())
    before = bits(model)
    for layer in layers.values():
        layer.merge()
        layer.unmerge()
    assert same_bits(bits(model), before)


def test_lightnings_training_mode_of_int8_is_refused_at_the_latest_when_saving(folder: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    inject_adapter(model, PeraConfig(2))
    BitsandbytesPrecision("int8-training", ignore_modules={"lm_head"}).convert_module(model)
    _, layer = next(adapted_layers(model))
    with pytest.raises(Exception, match="not int8-training"):
        _ = layer.quantization


def test_gradient_checkpointing_gives_the_same_gradients(folder: str, batches: Any) -> None:
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        module = pera_module(folder, "nf4", gradient_checkpointing=checkpointing)
        module.configure_model()
        inject_adapter(module.model, PeraConfig(2, dropout=0.3))
        randomise_adapter(module.model, 0.05)
        torch.manual_seed(2)
        answer_loss(*answer_logits(module.model.train(), batches[0])).backward()
        found.append({name: value.grad for name, value in module.model.named_parameters() if value.requires_grad})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(found[1][name], gradient)


def test_no_floating_copies(tmp_path: Path, folder: str, batches: Any) -> None:
    """The usual preparation step converts embeddings, head and norms to float32; this one converts nothing."""
    from peft import prepare_model_for_kbit_training

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    module = SomebodysModule(folder, "given")
    module.net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, quantization_config=config).train()
    usual = copy.deepcopy(module.net)
    before = {name: (value.dtype, value.data_ptr()) for name, value in module.net.named_parameters()}
    size = stored_bytes(module.net)
    make_trainer(tmp_path, PeraCallback(rank=2), max_epochs=1).fit(module, loader(batches))
    base = {name: value for name, value in module.net.named_parameters() if ".pera_" not in name}
    after = {name.replace(".base_layer", ""): (value.dtype, value.data_ptr()) for name, value in base.items()}
    assert after == before
    factors = 4 * sum(value.numel() for name, value in module.net.named_parameters() if ".pera_" in name)
    assert stored_bytes(module.net) == size + factors
    assert stored_bytes(prepare_model_for_kbit_training(usual, use_gradient_checkpointing=False)) > 1.25 * size


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_resume_is_bitwise_equal(tmp_path: Path, folder: str, batches: Any, optimizer: Any) -> None:
    def fit(name: str, epochs: int, ckpt_path: str | None = None) -> dict[str, Tensor]:
        pl.seed_everything(0, verbose=False)
        module = pera_module(folder, "nf4-dq", optimizer=optimizer)
        checkpoint = ModelCheckpoint(tmp_path / name, save_last=True)
        trainer = make_trainer(tmp_path / name, PeraCallback(rank=16), checkpoint, max_epochs=epochs)
        trainer.fit(module, loader(batches), ckpt_path=ckpt_path, **(SAFE_LOADING if ckpt_path else {}))
        return {name: value.detach() for name, value in module.named_parameters() if ".pera_" in name}

    whole = fit("whole", 4)
    fit("half", 2)
    resumed = fit("resumed", 4, str(tmp_path / "half" / "last.ckpt"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.mark.parametrize(("trained", "present"), [("nf4", None), (None, "nf4"), ("nf4", "nf4-dq")])
@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_a_checkpoint_over_another_base_is_refused(
    tmp_path: Path, folder: str, batches: Any, trained: Any, present: Any, stage: str
) -> None:
    checkpoint = ModelCheckpoint(tmp_path / "checkpoints", save_last=True)
    make_trainer(tmp_path, PeraCallback(rank=2), checkpoint, max_epochs=1).fit(
        pera_module(folder, trained), loader(batches)
    )
    trainer = make_trainer(tmp_path, PeraCallback(rank=2), max_epochs=2)
    words = f"{trained or 'not quantised'}; this one is {present or 'not quantised'}"
    with pytest.raises(CheckpointError, match=words):
        getattr(trainer, stage)(
            pera_module(folder, present),
            loader(batches),
            ckpt_path=str(tmp_path / "checkpoints" / "last.ckpt"),
            **SAFE_LOADING,
        )


def test_loftq_by_the_callback(tmp_path: Path, folder: str, batches: Any) -> None:
    losses = {}
    for name, quantization, init in (("float", None, "default"), ("nf4", "nf4", "default"), ("loftq", "nf4", "loftq")):
        record = LossRecorder()
        callback = PeraCallback(rank=16, init=init)
        module = pera_module(folder, quantization)
        make_trainer(tmp_path / name, callback, record, max_steps=1).fit(module, loader(batches))
        losses[name] = record.losses[0]
    assert abs(losses["loftq"] - losses["float"]) < abs(losses["nf4"] - losses["float"])
    # The folder's factors, not a new start, count when it is loaded.
    plain = pera_module(folder, "nf4")
    plain.configure_model()
    load_adapter(plain.model, tmp_path / "loftq" / "adapter")
    ids = token_ids()
    with torch.no_grad():
        assert torch.equal(plain.model.eval()(ids).logits, module.model.eval()(ids).logits)


def test_loftq_start_also_before_a_validation(tmp_path: Path, folder: str, batches: Any) -> None:
    module = pera_module(folder, "nf4")
    make_trainer(tmp_path, PeraCallback(rank=4, init="loftq", skip_checks=["untrained"])).validate(
        module, loader(batches), verbose=False
    )
    make_trainer(tmp_path, PeraCallback(rank=4, init="loftq"), max_epochs=0).fit(module, loader(batches))
    assert all(layer.pera_B.abs().max() > 0 for _, layer in adapted_layers(module))


def test_loftq_in_a_module_without_its_floating_model(tmp_path: Path, folder: str, batches: Any) -> None:
    module = SomebodysModule(folder, "in place")
    with pytest.raises(ConfigError, match="float_model"):
        make_trainer(tmp_path, PeraCallback(rank=2, init="loftq")).fit(module, loader(batches))


def test_loftq_over_a_floating_base(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs the floating weights"):
        make_trainer(tmp_path, PeraCallback(rank=2, init="loftq")).fit(Regressor())


def test_says_what_the_base_takes_in_memory(folder: str, caplog: pytest.LogCaptureFixture) -> None:
    module = pera_module(folder, "nf4", dtype="bfloat16")
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        module.configure_model()
    [message] = [record.getMessage() for record in caplog.records if "in memory" in record.getMessage()]
    taken, share, whole = (float(number) for number in re.findall(r"([0-9.]+) (?:MB|%|MB)", message))
    assert taken == round(stored_bytes(module.model) / 1e6, 1)
    weights = sum(value.numel() for value in AutoModelForCausalLM.from_pretrained(folder).parameters())
    assert whole == round(4 * weights / 1e6, 1)
    assert share == round(100 * stored_bytes(module.model) / (4 * weights), 1)


def test_wrong_options(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="nf4-dq"):
        PeraCausalLM(folder, quantization="4bit")
    with pytest.raises(ConfigError, match="paged_adamw_8bit"):
        PeraCausalLM(folder, optimizer="adam8")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"pera-lightning\[quant\]"):
        PeraCausalLM(folder, quantization="nf4")
