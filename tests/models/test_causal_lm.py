from __future__ import annotations

import logging
import math
import pickle
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from pera_lightning import PeraCallback
from pera_lightning.errors import ConfigError, DataError, InjectionError, TrainingError
from pera_lightning.injection import adapted_layers
from pera_lightning.models.answer_loss import answer_logits, answer_loss
from pera_lightning.models.causal_lm import PeraCausalLM
from tests.support.causal_fits import loader, make_trainer, save_llama, unequal_batches
from tests.support.models import tiny_gpt2, tiny_llama
from tests.support.pretrained import save_pretrained
from tests.support.trainers import SAFE_LOADING

# Lightning's remark about fits without validation.
pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no:UserWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_llama(tmp_path_factory.mktemp("pretrained"))


@pytest.fixture(scope="module")
def batches() -> list[dict[str, Tensor]]:
    return unequal_batches()


class ModeRecorder(pl.Callback):
    """What share of the model's modules is in train mode at every step."""

    def __init__(self) -> None:
        self.modes: dict[str, set[float]] = {"train": set(), "val": set()}

    def _record(self, stage: str, module: pl.LightningModule) -> None:
        modes = [part.training for part in module.model.modules()]
        self.modes[stage].add(sum(modes) / len(modes))

    def on_train_batch_start(self, trainer: Any, pl_module: pl.LightningModule, *args: Any) -> None:
        self._record("train", pl_module)

    def on_validation_batch_start(self, trainer: Any, pl_module: pl.LightningModule, *args: Any) -> None:
        self._record("val", pl_module)


def test_tokenizer_and_names_before_the_model_is_built(folder: str) -> None:
    module = PeraCausalLM(folder)
    assert module.tokenizer is module.tokenizer
    assert module.tokenizer.decode([6, 7]) == "ab"
    assert module.base_model_name == folder
    assert module.adapter_root is None
    with pytest.raises(InjectionError, match="not loaded yet"):
        module.training_step({}, 0)
    module.configure_model()
    model = module.model
    module.configure_model()
    assert module.adapter_root is module.model is model


def test_trains_in_train_mode(tmp_path: Path, folder: str, batches: list[dict[str, Tensor]]) -> None:
    recorder = ModeRecorder()
    module = PeraCausalLM(folder, generate_in_validation=True, max_new_tokens=9, printed_samples=0)
    trainer = make_trainer(tmp_path, recorder, max_epochs=2, val_check_interval=1)
    trainer.validate(module, loader(batches), verbose=False)
    trainer.fit(module, loader(batches), loader(batches))
    assert recorder.modes == {"train": {1.0}, "val": {0.0}}
    # Dropout is at work: the same weights give another loss at every call.
    first, second = (answer_loss(*answer_logits(module.model, batches[1])) for _ in range(2))
    assert first != second


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_trains_only_the_adapter(
    tmp_path: Path, folder: str, batches: list[dict[str, Tensor]], gradient_checkpointing: bool
) -> None:
    module = PeraCausalLM(
        folder, gradient_checkpointing=gradient_checkpointing, learning_rate=0.01, schedule="constant"
    )
    callback = PeraCallback(rank=2, dropout=0.1, adapter_dir=str(tmp_path / "adapter"))
    trainer = make_trainer(tmp_path, callback, max_epochs=3)
    trainer.fit(module, loader(batches), loader(batches))
    base = tiny_llama().from_pretrained(folder)
    layers = dict(adapted_layers(module.model))
    for name, layer in layers.items():
        assert torch.equal(layer.base_layer.weight, base.get_submodule(name).weight)
        for factor in (layer.pera_B, layer.pera_h):
            assert factor.abs().sum() > 0, f"{name} got no gradient"
    groups = {group["name"]: len(group["params"]) for group in trainer.optimizers[0].param_groups}
    assert groups == {"pera_A": len(layers), "pera_B": len(layers), "pera_h": len(layers)}
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_gradient_checkpointing_recomputes_while_training(
    tmp_path: Path, folder: str, batches: list[dict[str, Tensor]]
) -> None:
    module = PeraCausalLM(folder, gradient_checkpointing=True)
    module.configure_model()
    calls: list[str] = []
    module.model.model.layers[0].mlp.register_forward_pre_hook(lambda part, args: calls.append("forward"))
    make_trainer(tmp_path).fit(module, loader(batches[:1]))
    assert len(calls) == 2


def test_checkpoint_holds_plain_values_and_resumes(
    tmp_path: Path, folder: str, batches: list[dict[str, Tensor]]
) -> None:
    module = PeraCausalLM(folder, learning_rate=0.01, b_lr_factor=2.0, schedule="cosine")
    trainer = make_trainer(tmp_path, max_epochs=2)
    trainer.fit(module, loader(batches))
    file = tmp_path / "run.ckpt"
    trainer.save_checkpoint(file)
    checkpoint = torch.load(file, weights_only=True)
    assert checkpoint["hyper_parameters"]["pretrained"] == folder
    assert checkpoint["hyper_parameters"]["schedule"] == "cosine"
    assert all(key.startswith("model.") for key in checkpoint["state_dict"])
    loaded = PeraCausalLM.load_from_checkpoint(file, **SAFE_LOADING)
    assert loaded.b_lr_factor == 2.0
    for name, parameter in module.model.named_parameters():
        assert torch.equal(loaded.model.get_parameter(name), parameter)
    again = PeraCausalLM(folder, learning_rate=0.01, schedule="cosine")
    make_trainer(tmp_path, max_epochs=3).fit(again, loader(batches), ckpt_path=file, **SAFE_LOADING)
    assert again.trainer.global_step == 6


@pytest.mark.parametrize("warm_up", [{"warmup_ratio": 0.5}, {"warmup_steps": 2}])
def test_learning_rates_follow_the_schedule(
    tmp_path: Path, folder: str, batches: list[dict[str, Tensor]], warm_up: dict[str, Any]
) -> None:
    module = PeraCausalLM(folder, learning_rate=0.1, b_lr_factor=2.0, h_lr_factor=30.0, schedule="linear", **warm_up)
    rates: list[list[float]] = []

    class Recorder(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    callbacks = [PeraCallback(rank=2, adapter_dir=str(tmp_path / "a")), Recorder(), LearningRateMonitor()]
    logger = CSVLogger(tmp_path)
    make_trainer(tmp_path, *callbacks, logger=logger, max_epochs=4, accumulate_grad_batches=2).fit(
        module, loader(batches)
    )
    # 4 optimizer steps, 2 of them to warm up: the rates change after every second batch.
    shares = [0, 0.5, 0.5, 1, 1, 0.5, 0.5, 0]
    assert rates == [pytest.approx([0.1 * share, 0.2 * share, 3.0 * share], abs=1e-12) for share in shares]
    header = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()[0]
    assert "lr-AdamW/pera_B" in header
    assert "train_loss" in header


def test_training_without_an_end_needs_a_constant_rate(
    tmp_path: Path, folder: str, batches: list[dict[str, Tensor]]
) -> None:
    endless = {"max_epochs": -1, "max_time": {"seconds": 1}}
    with pytest.raises(ConfigError, match=r"set trainer\.max_steps"):
        make_trainer(tmp_path, **endless).fit(PeraCausalLM(folder), loader(batches))
    module = PeraCausalLM(folder, schedule="constant")
    make_trainer(tmp_path, **endless).fit(module, loader(batches))
    assert module.trainer.global_step > 0


def test_full_fine_tuning_says_so(
    tmp_path: Path, folder: str, batches: list[dict[str, Tensor]], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        module = PeraCausalLM(folder)
        make_trainer(tmp_path).fit(module, loader(batches))
        total = sum(parameter.numel() for parameter in module.model.parameters())
        assert f"No PERA adapter in the model: fine-tuning {total:,} parameters" in caplog.text
        caplog.clear()
        callback = PeraCallback(rank=2, adapter_dir=str(tmp_path / "adapter"))
        make_trainer(tmp_path, callback).fit(PeraCausalLM(folder), loader(batches))
    assert "No PERA adapter" not in caplog.text


def test_nothing_to_train(tmp_path: Path, folder: str, batches: list[dict[str, Tensor]]) -> None:
    module = PeraCausalLM(folder)
    module.configure_model()
    module.model.requires_grad_(False)
    with pytest.raises(TrainingError, match="add PeraCallback"):
        make_trainer(tmp_path).fit(module, loader(batches))


def test_batch_without_answers(tmp_path: Path, folder: str, batches: list[dict[str, Tensor]]) -> None:
    empty = {**batches[0], "labels": torch.full_like(batches[0]["labels"], -100)}
    with pytest.raises(DataError, match="truncation"):
        make_trainer(tmp_path).fit(PeraCausalLM(folder), loader([empty]))


def test_half_precision_and_another_architecture(tmp_path: Path, batches: list[dict[str, Tensor]]) -> None:
    pretrained = save_pretrained(tmp_path / "gpt2", tiny_gpt2())
    module = PeraCausalLM(pretrained, dtype="bfloat16", generate_in_validation=True, max_new_tokens=9)
    trainer = make_trainer(tmp_path, PeraCallback(rank=2, adapter_dir=str(tmp_path / "adapter")))
    trainer.fit(module, loader(batches), loader(batches))
    assert module.model.dtype == torch.bfloat16
    assert math.isfinite(trainer.callback_metrics["val_loss"])
    assert trainer.callback_metrics["val_perplexity"].dtype == torch.float32


def test_pickles(folder: str) -> None:
    """As ddp_spawn sends it."""
    module = PeraCausalLM(folder)
    module.configure_model()
    again = pickle.loads(pickle.dumps(module))
    assert again.tokenizer.decode([6]) == "a"
    assert torch.equal(again.model.lm_head.weight, module.model.lm_head.weight)


# Of jsonargparse, about the LightningCLI itself.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_lightning_cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["main.py"])

    def parse(*arguments: str) -> Any:
        settings = ["--model.pretrained=org/model", "--trainer.accelerator=cpu", "--trainer.logger=false"]
        return LightningCLI(
            PeraCausalLM,
            pl.LightningDataModule,
            args=[*settings, *arguments],
            run=False,
            seed_everything_default=False,
            auto_configure_optimizers=False,
        )

    module = parse("--model.dtype=float16", "--model.schedule=cosine", "--model.gguf_file=null").model
    assert isinstance(module, PeraCausalLM)
    assert module.schedule == module.hparams.schedule == "cosine"
    assert module.hparams.dtype == "float16"
    with pytest.raises(SystemExit):
        parse("--model.schedule=exponential")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        parse("--help")
    assert "Share of all optimizer steps over which" in capsys.readouterr().out


@pytest.mark.parametrize(
    "option",
    [
        {"dtype": "int8"},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"b_lr_factor": -1.0},
        {"h_lr_factor": math.inf},
        {"weight_decay": -0.1},
        {"warmup_ratio": 1.0},
        {"warmup_ratio": "half"},
        {"warmup_steps": -1},
        {"warmup_steps": 0.5},
        {"schedule": "exponential"},
        {"max_new_tokens": 0},
        {"max_new_tokens": 2.5},
        {"printed_samples": -1},
    ],
)
def test_options_that_cannot_be(option: dict[str, Any]) -> None:
    (name,) = option
    with pytest.raises(ConfigError, match=f"{name} cannot have this value"):
        PeraCausalLM("org/model", **option)


def test_the_warm_up_has_one_length() -> None:
    with pytest.raises(ConfigError, match=r"warmup_ratio=0\.1 and warmup_steps=100"):
        PeraCausalLM("org/model", warmup_ratio=0.1, warmup_steps=100)


@pytest.mark.real_model
def test_real_model(tmp_path: Path, smollm2_folder: Path) -> None:
    module = PeraCausalLM(
        str(smollm2_folder),
        gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf",
        generate_in_test=True,
        max_new_tokens=10,
    )
    tokenizer = module.tokenizer
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=False)
    answer = tokenizer("The capital of France is Paris.<|im_end|>")["input_ids"]
    batch = {"input_ids": torch.tensor([prompt + answer]), "labels": torch.tensor([[-100] * len(prompt) + answer])}
    results = make_trainer(tmp_path).test(module, loader([batch]), verbose=False)[0]
    assert results["test_exact_match"] == results["test_token_accuracy"] == 1.0
    assert results["test_loss"] < 0.5


def test_a_checkpoint_with_an_adapter_loads_without_a_trainer(
    tmp_path: Path, folder: str, batches: list[dict[str, Tensor]]
) -> None:
    module = PeraCausalLM(folder, learning_rate=0.1)
    trainer = make_trainer(tmp_path, PeraCallback(rank=2, adapter_dir=str(tmp_path / "adapter")))
    trainer.fit(module, loader(batches))
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    loaded = PeraCausalLM.load_from_checkpoint(tmp_path / "run.ckpt", **SAFE_LOADING)
    expected, found = (dict(one.state_dict()) for one in (module, loaded))
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
