"""A URL where a path is taken made a local folder named `memory:` or `s3:`; adapters went there, not to the URL."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, Strategy
from torch import nn

from pera_lightning import (
    AdapterSet,
    InstructionDataModule,
    PeraCallback,
    adapter_state_dict,
    export_lora,
    inject_lora,
    load_adapter,
    save_adapter,
)
from pera_lightning.analysis import inspect_adapter
from pera_lightning.callback.remote_places import refuse_remote_shards
from pera_lightning.callback.strategies.choice import strategy_of
from pera_lightning.checkpoint.training.consolidation import consolidate
from pera_lightning.errors import ConfigError, FolderError, PeraError
from pera_lightning.loading.pretrained import PretrainedSource
from pera_lightning.storage.remote import RemotePath, collapsed_url, local_path, place
from tests.cli.test_main import run
from tests.support.callback_fits import make_trainer
from tests.support.models import Regressor
from tests.support.remote import adapted, no_folder_of_a_scheme, plain

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")


@pytest.fixture(autouse=True)
def here(tmp_path: Path) -> Iterator[Path]:
    with no_folder_of_a_scheme(tmp_path):
        yield tmp_path


def files() -> list[str]:
    return sorted(fsspec.filesystem("memory").find("/"))


def same(first: nn.Module, second: nn.Module) -> bool:
    one, other = adapter_state_dict(first), adapter_state_dict(second)
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


SPELLINGS: list[Any] = ["memory://bucket/adapter", Path("memory://bucket/adapter"), "memory://bucket/adapter/"]


@pytest.mark.parametrize("url", SPELLINGS, ids=repr)
def test_saves_to_and_loads_from_a_url(url: Any) -> None:
    model = adapted()
    assert save_adapter(model, url) == "memory://bucket/adapter"
    names = ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert files() == [f"/bucket/adapter/{name}" for name in names]
    loaded = plain()
    load_adapter(loaded, url)
    assert same(model, loaded)
    adapters = AdapterSet(plain())
    adapters.load("one", url)
    adapters.switch("one")
    assert same(model, adapters.model)
    assert [row.layer for row in inspect_adapter(url).layers] == ["0"]


def test_an_interrupted_upload_leaves_the_earlier_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted()
    save_adapter(model, "memory://bucket/adapter")
    memory = fsspec.filesystem("memory")
    before = {path: memory.cat(path) for path in files()}
    opened = type(memory)._open

    def broken(self: Any, path: str, mode: str = "rb", **options: Any) -> Any:
        if "w" in mode and path.endswith("config.json"):
            raise OSError("the connection is gone")
        return opened(self, path, mode, **options)

    monkeypatch.setattr(type(memory), "_open", broken)
    with torch.no_grad():
        model[0].pera_B.add_(1)
    with pytest.raises(FolderError, match="connection"):
        save_adapter(model, "memory://bucket/adapter")
    assert {path: memory.cat(path) for path in files()} == before


@pytest.mark.parametrize("made", ["file://{}/adapter", "file:{}/adapter", "local://{}/adapter", "{}/adapter"])
def test_urls_of_files_are_local_paths(here: Path, made: str) -> None:
    model, url = adapted(), made.format(here)
    assert save_adapter(model, url) == here / "adapter"
    for spelling in (url, Path(url)):
        loaded = plain()
        load_adapter(loaded, spelling)
        assert same(model, loaded)


def test_which_paths_are_urls(here: Path) -> None:
    for text in ("s3://b/a", "gs://b", "simplecache::s3://b/a", "hf://user/repo", "nosuch://a"):
        assert str(place(text)) == text
        with pytest.raises(ConfigError, match="has to be local"):
            local_path(text, "--out")
    for text in ("a/b", "/a/b", "../a", "a:b/c", "C:/a", "12:30/a", "a b:/c", "."):
        assert place(text) == Path(text)
    assert place(Path("s3://b/a")) == RemotePath("s3://b/a")
    assert place(os.path.normpath("gs://b/a/../c")) == RemotePath("gs://b/c")
    assert (RemotePath("s3://b/a").parent, RemotePath("s3://b/a").name) == (RemotePath("s3://b"), "a")
    with pytest.raises(TypeError):
        os.fspath(RemotePath("s3://b/a"))  # type: ignore[call-overload]
    assert collapsed_url("/home/memory:/b/a") == "memory://b/a"
    assert collapsed_url("file:/a") is None


def trained(folder: str, **options: Any) -> tuple[Regressor, ModelCheckpoint]:
    best, module = ModelCheckpoint(monitor="val_loss", save_last=True), Regressor()
    make_trainer(folder, PeraCallback(2), best, **{"max_epochs": 1, **options}).fit(module)  # type: ignore[arg-type]
    return module, best


@pytest.mark.parametrize("build", ["memory://bucket/run", "file://{}/run"])
def test_a_fit_with_its_root_at_a_url(here: Path, build: str) -> None:
    root = build.format(here)
    module, best = trained(root)
    loaded = Regressor()
    load_adapter(loaded, f"{root}/adapter")
    assert same(loaded, module)
    with fsspec.open(f"{root}/adapter/README.md", "r", encoding="utf-8") as card:
        assert f"of step 4, the best checkpoint {best.best_model_path}" in card.read()
    consolidate(best.best_model_path, f"{root}/consolidated")
    load_adapter(loaded := Regressor(), f"{root}/consolidated")
    assert same(loaded, module)
    again = Regressor()
    trainer = make_trainer(root, PeraCallback(2), ModelCheckpoint(monitor="val_loss"), max_epochs=2)  # type: ignore[arg-type]
    trainer.fit(again, ckpt_path=best.last_model_path)
    assert trainer.global_step == 8


def test_with_a_logger_the_adapter_is_in_its_folder() -> None:
    trained("memory://bucket/run", logger=CSVLogger("memory://bucket/run", name="tiny", version="fit"))
    assert "/bucket/run/tiny/fit/adapter/adapter_config.json" in files()
    assert "/bucket/run/tiny/fit/metrics.csv" in files()


def test_an_adapter_dir_at_a_url(here: Path) -> None:
    module = Regressor()
    callback = PeraCallback(2, adapter_dir="memory://bucket/adapter")
    make_trainer(here, callback, enable_checkpointing=False, max_epochs=1).fit(module)
    load_adapter(loaded := Regressor(), "memory://bucket/adapter")
    assert same(loaded, module)


@pytest.mark.parametrize(
    "options",
    [
        {"default_root_dir": Path("memory://bucket/run")},
        {"callbacks": [ModelCheckpoint(Path("memory://bucket/run"))]},
        {"callbacks": [ModelCheckpoint("file:///nowhere/run")]},
        {"logger": CSVLogger(Path("s3://bucket/run"))},
    ],
)
def test_urls_that_lightning_takes_for_folders_are_refused_at_once(here: Path, options: dict[str, Any]) -> None:
    callbacks = [PeraCallback(2), *options.get("callbacks", [])]
    settings = {"default_root_dir": here, "logger": False, "accelerator": "cpu", **options, "callbacks": callbacks}
    trainer = pl.Trainer(**settings, enable_progress_bar=False, enable_model_summary=False, max_epochs=1)
    with pytest.raises(ConfigError, match=r"as a str"):
        trainer.fit(Regressor())
    # To say that the fit has failed, the logger has written to its folder.
    shutil.rmtree(here / "s3:", ignore_errors=True)


@pytest.mark.parametrize("strategy", [ModelParallelStrategy, FSDPStrategy, DeepSpeedStrategy])
def test_shards_at_a_url_are_refused(here: Path, strategy: type[Strategy]) -> None:
    trainer = make_trainer(here, ModelCheckpoint("memory://bucket/run"))
    # Neither sharding nor DeepSpeed starts here: the check asks for no more than the class.
    trainer.strategy.__class__ = strategy
    with pytest.raises(ConfigError, match="writes its checkpoints to local files only"):
        refuse_remote_shards(trainer, strategy_of(trainer))


def test_a_lora_at_a_url_is_a_start(here: Path) -> None:
    export_lora(adapted(), here / "lora", to="peft", check=None)
    memory = fsspec.filesystem("memory")
    memory.put(str(here / "lora"), "/bucket/lora", recursive=True)
    one, other = plain(), plain()
    inject_lora(one, here / "lora")
    inject_lora(other, "memory://bucket/lora")
    assert same(one, other)
    assert PeraCallback(init_from="memory://bucket/lora").config == PeraCallback(init_from=str(here / "lora")).config
    with pytest.raises(ConfigError, match="take the place of the LoRA"):
        PeraCallback(init_from="memory://bucket/lora", adapter_dir="memory://bucket/lora/")


def test_exports_and_comparisons_of_an_adapter_at_a_url(here: Path) -> None:
    save_adapter(adapted(), "memory://bucket/adapter")
    export_lora("memory://bucket/adapter", here / "lora")
    assert (here / "lora/adapter_model.safetensors").is_file()
    printed = run("diff", "memory://bucket/adapter", "memory://bucket/adapter", folder=here)
    assert "options: the same" in printed
    run("inspect", "--adapter", "memory://bucket/adapter", "--interactions", "false", folder=here)
    assert (here / "adapter-inspect/layers.csv").is_file()
    run("export", "--adapter", "memory://bucket/adapter", "--out", here / "cut", "--check", "false", folder=here)
    assert (here / "cut/adapter_model.safetensors").is_file()


def test_file_urls_of_models_and_data(here: Path) -> None:
    assert PretrainedSource(f"file://{here}/model").pretrained == f"{here}/model"
    assert PretrainedSource("org/model").pretrained == "org/model"
    assert PretrainedSource("./model").pretrained == "./model"
    data = InstructionDataModule(train_files=f"file://{here}/rows.jsonl")
    assert data.train_source == "rows.jsonl"


def test_a_checkpoint_that_is_not_there(here: Path) -> None:
    for url in ("memory://bucket/none.ckpt", f"file://{here}/none.ckpt"):
        with pytest.raises(PeraError, match="no checkpoint"):
            consolidate(url, here / "out")
    with pytest.raises(PeraError, match=r"no file memory://bucket/none/adapter_config.json"):
        load_adapter(plain(), "memory://bucket/none")
