"""Fits that start from a LoRA: `PeraCallback(init_from=...)`."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pera_lightning import (
    PeraCallback,
    PeraCausalLM,
    PeraConfig,
    adapter_state_dict,
    export_lora,
    inject_adapter,
    inject_lora,
    load_adapter,
)
from pera_lightning.errors import AdapterFileError, CheckpointError, ConfigError
from pera_lightning.functional.distributed import is_distributed, whole
from pera_lightning.injection import adapted_layers
from tests.cli.test_main import run as run_command
from tests.support.models import Regressor, randomise_adapter, tiny_llama, token_ids
from tests.support.pretrained import save_pretrained
from tests.support.trainers import cpu_trainer

# Lightning's remarks about tests that resume in another folder than the first run.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning"),
]


def export(model: nn.Module, folder: Path, **options: Any) -> Path:
    """A LoRA for a model, of order 1 so that its rank is the one given."""
    inject_adapter(model, PeraConfig(order=1, **options))
    torch.manual_seed(4)
    randomise_adapter(model)
    export_lora(model, folder)
    return folder


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    return export(Regressor(), tmp_path / "lora", rank=3, alpha=4, target_modules=["0", "2"])


def trainer(folder: Path, callback: PeraCallback, **options: Any) -> pl.Trainer:
    return cpu_trainer(folder, callback, **{"num_sanity_val_steps": 0, "max_epochs": 1, **options})


def started(lora: Path) -> Regressor:
    module = Regressor()
    inject_lora(module, lora)
    return module


def adapter(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in adapter_state_dict(module).items()}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("build_in", ["__init__", "setup", "configure_model"])
def test_a_fit_begins_with_the_lora_and_moves_everything(lora: Path, tmp_path: Path, build_in: str) -> None:
    wanted = cpu_trainer(tmp_path).validate(started(lora), verbose=False)
    module, callback = Regressor(build_in), PeraCallback(order=2, init_from=str(lora))
    assert (callback.config.rank, callback.config.alpha, callback.config.order) == (3, 3, 2)
    assert trainer(tmp_path, callback).validate(module, verbose=False) == wanted
    before = adapter(module)
    assert_same(before, adapter(started(lora)))
    trainer(tmp_path, callback).fit(module)
    after = adapter(module)
    assert len(after) == 6
    assert all(not torch.equal(after[name], value) for name, value in before.items())
    # A second run goes on; the folder of the LoRA is not needed any more.
    shutil.rmtree(lora)
    assert trainer(tmp_path, callback).validate(module, verbose=False) != wanted
    assert_same(adapter(module), after)
    fresh = Regressor()
    load_adapter(fresh, tmp_path / "adapter")
    assert_same(adapter(fresh), after)


def test_another_callback_takes_over_what_was_trained(lora: Path, tmp_path: Path) -> None:
    module = Regressor()
    trainer(tmp_path, PeraCallback(init_from=str(lora))).fit(module)
    before = adapter(module)
    trainer(tmp_path, PeraCallback(init_from=str(lora))).test(module, verbose=False)
    assert_same(adapter(module), before)


def test_a_checkpoint_comes_before_the_lora(lora: Path, tmp_path: Path) -> None:
    whole = Regressor()
    trainer(tmp_path / "whole", PeraCallback(init_from=str(lora)), max_epochs=2).fit(whole)
    half = trainer(tmp_path / "half", PeraCallback(init_from=str(lora)))
    half.fit(Regressor())
    path = half.checkpoint_callback.best_model_path
    stored = torch.load(path, weights_only=True)["state_dict"]
    for command in ("validate", "test"):
        module = Regressor()
        getattr(trainer(tmp_path, PeraCallback(init_from=str(lora))), command)(module, ckpt_path=path, verbose=False)
        assert_same(adapter(module), stored)
    resumed = Regressor()
    trainer(tmp_path / "resumed", PeraCallback(init_from=str(lora)), max_epochs=2).fit(resumed, ckpt_path=path)
    assert_same(adapter(resumed), adapter(whole))


def test_a_run_resumes_without_the_lora_by_the_config_of_its_adapter(lora: Path, tmp_path: Path) -> None:
    first = trainer(tmp_path, PeraCallback(init_from=str(lora)))
    module = Regressor()
    first.fit(module)
    path = first.checkpoint_callback.best_model_path
    shutil.rmtree(lora)
    with pytest.raises(AdapterFileError, match="resumed without it"):
        PeraCallback(init_from=str(lora))
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["config"]
    fresh = Regressor()
    trainer(tmp_path, PeraCallback(config=PeraConfig.from_dict(config))).test(fresh, ckpt_path=path, verbose=False)
    assert_same(adapter(fresh), adapter(module))


def test_a_checkpoint_of_other_layers_is_refused(lora: Path, tmp_path: Path) -> None:
    first = trainer(tmp_path, PeraCallback(init_from=str(lora)))
    first.fit(Regressor())
    other = export(Regressor(), tmp_path / "other", rank=2, target_modules=["0", "2"])
    with pytest.raises(CheckpointError, match="rank is 3 there and 2 here"):
        trainer(tmp_path, PeraCallback(init_from=str(other))).test(
            Regressor(), ckpt_path=first.checkpoint_callback.best_model_path, verbose=False
        )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": 8}, r"(?s)rank=8.*expected: 3"),
        ({"alpha": 8}, "alpha=8"),
        ({"use_rslora": True}, "use_rslora"),
        ({"target_modules": ["0"]}, "target_modules"),
        ({"exclude_modules": ["0"]}, "exclude_modules"),
        ({"modules_to_save": ["3"]}, "modules_to_save"),
        ({"bias": "adapted"}, "bias"),
        ({"trainable_tokens": [1]}, "trainable_tokens"),
        ({"rank_pattern": {"0": 2}}, "rank_pattern"),
        ({"init": "loftq"}, "init="),
        ({"config": PeraConfig()}, "twice"),
    ],
)
def test_options_that_are_those_of_the_lora(options: dict[str, Any], words: str, lora: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        PeraCallback(init_from=str(lora), **options)


def test_options_that_are_open(lora: Path) -> None:
    callback = PeraCallback(3, 3, alpha=3, terms="cross", dropout=0.1, coefficient_scale="auto", init_from=str(lora))
    config = callback.config
    assert (config.order, config.terms, config.dropout, config.coefficient_scale) == (3, "cross", 0.1, "auto")
    assert pickle.loads(pickle.dumps(callback)).config == config


def test_the_lora_is_not_overwritten(lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for init_from, adapter_dir in ((lora, "elsewhere/../lora"), ("lora", lora)):
        with pytest.raises(ConfigError, match="take the place of the LoRA"):
            PeraCallback(init_from=str(init_from), adapter_dir=str(adapter_dir))


def test_a_lora_for_another_model_leaves_the_module_as_it_is(lora: Path, tmp_path: Path) -> None:
    module = Regressor(width=5)
    with pytest.raises(AdapterFileError, match="12 features"):
        trainer(tmp_path, PeraCallback(init_from=str(lora))).fit(module)
    assert not list(adapted_layers(module))
    assert all(value.requires_grad for value in module.parameters())


class TwoModels(Regressor):
    def __init__(self, chosen: bool) -> None:
        super().__init__()
        self.teacher, self.student = tiny_llama(), tiny_llama()
        if chosen:
            self.adapter_root = self.student


def test_one_of_several_models(tmp_path: Path) -> None:
    folder = export(tiny_llama(), tmp_path / "lora", rank=2, target_modules=["q_proj"])
    with pytest.raises(ConfigError, match="teacher, student"):
        trainer(tmp_path, PeraCallback(init_from=str(folder))).validate(TwoModels(chosen=False), verbose=False)
    module = TwoModels(chosen=True)
    trainer(tmp_path, PeraCallback(init_from=str(folder))).validate(module, verbose=False)
    assert all(".student." in f".{name}" for name, _ in adapted_layers(module))


def test_in_several_processes(lora: Path, tmp_path: Path) -> None:
    one, two = Regressor(), Regressor()
    trainer(tmp_path / "one", PeraCallback(init_from=str(lora)), max_steps=1).fit(one)
    options = {"processes": 2, "max_steps": 1, "use_distributed_sampler": False}
    trainer(tmp_path / "two", PeraCallback(init_from=str(lora)), **options).fit(two)
    # The same batch in both, so that the mean of their gradients is that of one.
    assert_same(adapter(two), adapter(one))


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    save_pretrained(folder / "base")
    options = {"rank": 3, "target_modules": ["q_proj", "down_proj", "embed_tokens"], "modules_to_save": ["norm"]}
    module = PeraCausalLM(str(folder / "base"))
    module.configure_model()
    model = module.model
    inject_adapter(model, PeraConfig(order=1, rank_pattern={"q_proj": 2}, **options))
    randomise_adapter(model)
    with torch.no_grad():
        model.model.norm.weight.normal_()
    export_lora(model, folder / "lora")
    return folder


class Recorder(pl.Callback):
    """The adapter at the start of a run, gathered while there are processes to gather it from."""

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        tensors = adapter_state_dict(pl_module.model)
        self.sharded = [name for name, value in tensors.items() if is_distributed(value)]
        self.adapter = {name: whole(value).clone() for name, value in tensors.items()}


def test_a_language_model_that_is_built_on_the_meta_device(
    language_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Taken back afterwards: Lightning would leave its own choice to the tests that follow.
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(find_free_network_port()))
    module, recorder = PeraCausalLM(str(language_model / "base")), Recorder()
    rows = DataLoader([{"input_ids": token_ids(), "labels": token_ids()}], batch_size=None)  # type: ignore[arg-type]
    run = trainer(tmp_path, PeraCallback(init_from=str(language_model / "lora")), strategy=ModelParallelStrategy(1, 1))
    run.callbacks.append(recorder)
    try:
        run.validate(module, rows, verbose=False)
    finally:
        # Later tests in this process would be taken for one of several.
        torch.distributed.destroy_process_group()
    plain = PeraCausalLM(str(language_model / "base"))
    plain.configure_model()
    inject_lora(plain.model, language_model / "lora")
    assert_same(recorder.adapter, adapter(plain.model))
    assert recorder.adapter["model.norm.weight"].std() > 0.5
    assert "model.layers.0.self_attn.q_proj.pera_A" in recorder.sharded


def test_from_the_command_line(language_model: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "say a", "completion": "a"}))
    config = {
        "seed_everything": 0,
        "trainer": {"accelerator": "cpu", "max_steps": 1, "logger": False, "enable_progress_bar": False},
        "model": {"class_path": "PeraCausalLM", "init_args": {"pretrained": str(language_model / "base")}},
        "data": {"class_path": "InstructionDataModule", "init_args": {"train_files": str(tmp_path / "rows.jsonl")}},
        "pera": {"order": 2, "init_from": str(language_model / "lora"), "adapter_dir": str(tmp_path / "adapter")},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    run_command("fit", "--config", tmp_path / "config.yaml", folder=tmp_path)
    layers = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["layers"]
    assert layers["model.layers.1.self_attn.q_proj"] == {"rank": 3, "alpha": 3}
    assert len(layers) == 5
    assert "rank=4" in run_command(
        "fit", "--config", tmp_path / "config.yaml", "--pera.rank", 4, folder=tmp_path, ok=False
    )
    words = ("estimate", "--config", tmp_path / "config.yaml", "--pera.adapter_dir", "null")
    assert "adapter" in run_command(*words, folder=tmp_path)
