"""`test`, `predict` and `validate` without a checkpoint ran the untrained base without a word."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint

from pera_lightning import PeraCallback, PeraConfig, inject_adapter, load_adapter, quantize_model, save_adapter
from pera_lightning.__main__ import main
from pera_lightning.errors import CheckpointError
from pera_lightning.injection.untrained import is_untrained
from pera_lightning.loading.adapted_model import load_adapted_model
from tests.support.callback_fits import make_trainer
from tests.support.models import Regressor, randomise_adapter, tiny_llama
from tests.support.pretrained import save_pretrained
from tests.support.trainers import SAFE_LOADING

COMMANDS = ["validate", "test", "predict"]


@contextmanager
def told(command: str | None) -> Iterator[None]:
    """Whether a run says that it is the base's; any other warning is an error."""
    if command is None:
        # Warnings are errors here.
        yield
    else:
        words = rf"PERA: {command} runs the base(.|\n)*ckpt_path=(.|\n)*load_adapter(.|\n)*Check 'untrained'"
        with pytest.warns(UserWarning, match=words) as caught:
            yield
        assert sum("PERA" in str(warning.message) for warning in caught) == 1


def run(command: str, folder: Path, module: Any, callback: PeraCallback | None = None, **options: Any) -> Any:
    quiet = {} if command == "predict" else {"verbose": False}
    trainer = make_trainer(folder, callback or PeraCallback(rank=2), enable_checkpointing=False)
    return getattr(trainer, command)(module, **quiet, **options)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("build_in", ["__init__", "setup", "configure_model"])
def test_fresh_adapters_are_told(tmp_path: Path, command: str, build_in: str) -> None:
    with told(command):
        run(command, tmp_path, Regressor(build_in))
    module = Regressor()
    inject_adapter(module, PeraConfig(2))
    with told(command):
        run(command, tmp_path, module)
    with told(None):
        run(command, tmp_path, Regressor(build_in), PeraCallback(rank=2, skip_checks=["untrained"]))


@pytest.mark.parametrize("command", COMMANDS)
def test_trained_or_loaded_ones_are_not(tmp_path: Path, command: str) -> None:
    module, best = Regressor(), ModelCheckpoint(tmp_path, save_weights_only=True)
    trainer = make_trainer(tmp_path, PeraCallback(rank=2), best, num_sanity_val_steps=2)
    with told(None):
        # Its validations, and the sanity check before the first step, are none of this.
        trainer.fit(module)
        getattr(trainer, command)(module)
        getattr(trainer, command)(module, ckpt_path="best", **SAFE_LOADING)
        run(command, tmp_path, module)
        run(command, tmp_path, Regressor(), ckpt_path=best.best_model_path, **SAFE_LOADING)
        loaded = Regressor()
        load_adapter(loaded, tmp_path / "adapter")
        run(command, tmp_path, loaded)
        # Also one that was saved before any training.
        fresh, again = Regressor(), Regressor()
        inject_adapter(fresh, PeraConfig(2))
        load_adapter(again, save_adapter(fresh, tmp_path / "fresh"))
        run(command, tmp_path, again)
        by_hand = Regressor()
        inject_adapter(by_hand, PeraConfig(2))
        randomise_adapter(by_hand)
        run(command, tmp_path, by_hand)
        by_hand.net[0].pera_B.data = by_hand.net[0].pera_B.data * 2
        run(command, tmp_path, by_hand)


def test_a_fit_of_no_step_leaves_what_was_there(tmp_path: Path) -> None:
    module = Regressor()
    make_trainer(tmp_path, PeraCallback(rank=2), enable_checkpointing=False, max_epochs=0).fit(module)
    with told("test"):
        run("test", tmp_path, module)


def test_a_checkpoint_without_the_adapter_is_refused(tmp_path: Path) -> None:
    plain = ModelCheckpoint(tmp_path)
    make_trainer(tmp_path, plain).fit(Regressor())
    with pytest.raises(CheckpointError, match="no tensor of this adapter"):
        run("test", tmp_path, Regressor(), ckpt_path=plain.best_model_path, **SAFE_LOADING)


def test_a_loftq_start_is_untrained_too() -> None:
    torch.manual_seed(0)
    floating, model = tiny_llama(), tiny_llama()
    model.load_state_dict(floating.state_dict())
    quantize_model(model, "int8")
    inject_adapter(model, PeraConfig(2, init="loftq"), float_model=floating)
    assert next(value for name, value in model.named_parameters() if "pera_B" in name).any()
    assert is_untrained(model)
    with torch.no_grad():
        next(value for name, value in model.named_parameters() if "pera_B" in name).mul_(2)
    assert not is_untrained(model)


def test_an_embedding_starts_with_its_other_factor() -> None:
    model = tiny_llama()
    inject_adapter(model, PeraConfig(2, target_modules=["embed_tokens", "q_proj"]))
    assert is_untrained(model)
    assert not is_untrained(tiny_llama())


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    torch.manual_seed(0)
    save_pretrained(folder / "model", tiny_llama())
    rows = [{"prompt": f"say {word}", "completion": word} for word in "abcd"]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = {f"{split}_files": "rows.jsonl" for split in ("train", "val", "test")}
    checkpoints = {"class_path": "ModelCheckpoint", "init_args": {"dirpath": "checkpoints", "filename": "only"}}
    config = {
        "seed_everything": 0,
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 1,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [checkpoints],
        },
        "model": {"class_path": "PeraCausalLM", "init_args": {"pretrained": "model"}},
        "data": {"class_path": "InstructionDataModule", "init_args": {**files, "batch_size": 2}},
        "pera": {"rank": 2, "skip_checks": ["head"]},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def command_line(folder: Path, *words: str) -> str:
    """Run a command; the message with which it is refused, if it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["pera_lightning", words[0], "--config", "config.yaml", *words[1:]])
        try:
            main()
        except SystemExit as stop:
            return str(stop.code)
    return ""


@pytest.mark.parametrize("command", ["test", "predict"])
def test_the_command_line_refuses(project: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    with monkeypatch.context() as patch:
        # Before anything is loaded.
        patch.delattr("pera_lightning.cli.fit.trainer.PeraCLI.instantiate_trainer")
        patch.delattr("lightning.pytorch.cli.LightningCLI.instantiate_classes")
        message = command_line(project, command)
        assert f"`{command}` would run the base, as if it had no adapter" in message
        assert "--ckpt_path" in message
        assert "Which checkpoint is the best one only the process of the fit knows" in command_line(
            project, command, "--ckpt_path", "best"
        )
    with pytest.warns(UserWarning, match="there is no last checkpoint available"):
        message = command_line(project, command, "--ckpt_path", "last")
    assert f"`{command}` would run the base, as if it had no adapter" in message
    assert not command_line(project, command, "--pera.skip_checks", "[head,untrained]")


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")
def test_the_command_line_runs_what_was_trained(project: Path) -> None:
    with told("validate"):
        assert not command_line(project, "validate")
    assert not command_line(project, "fit")
    for command in COMMANDS:
        assert not command_line(project, command, "--ckpt_path", "checkpoints/only.ckpt")


def test_an_adapter_that_changes_nothing_answers_for_nobody(project: Path) -> None:
    torch.manual_seed(0)
    model = tiny_llama()
    inject_adapter(model, PeraConfig(2))
    folder = save_adapter(model, project / "idle", base_model=str(project / "model"))
    with pytest.warns(UserWarning, match="changes nothing: its factors are those of before training"):
        load_adapted_model(folder)
    randomise_adapter(model)
    with told(None):
        load_adapted_model(save_adapter(model, project / "trained", base_model=str(project / "model")))
