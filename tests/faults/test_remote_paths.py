"""A URL where a path is taken made a local folder named `memory:` or `s3:`; adapters went there, not to the URL."""

from __future__ import annotations

import ast
import inspect
import os
import shutil
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import fsspec
import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn

import pera_lightning
from pera_lightning import (
    AdapterSet,
    CommonsenseDataModule,
    GlueDataModule,
    InstructionDataModule,
    PeraCallback,
    PeraConfig,
    TextDataModule,
    adapter_state_dict,
    export_lora,
    export_merged,
    inject_adapter,
    inject_lora,
    load_adapter,
    save_adapter,
)
from pera_lightning.analysis import inspect_adapter
from pera_lightning.checkpoint.consolidate import consolidate
from pera_lightning.checkpoint.remote import RemotePath, collapsed_url, local_path, place
from pera_lightning.errors import ConfigError, PeraError
from pera_lightning.integration.evaluation import evaluate_commonsense
from pera_lightning.integration.pretrained import PretrainedSource
from tests.cli.test_main import run
from tests.conftest import ROOT
from tests.support.callback_fits import make_trainer
from tests.support.models import Regressor, randomise_adapter

PACKAGE = ROOT / "pera_lightning"
pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, in which no folder named after a scheme may appear."""
    monkeypatch.chdir(tmp_path)
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    yield tmp_path
    assert not [name for name in os.listdir(tmp_path) if name.endswith(":")]
    memory.store.clear()


def files() -> list[str]:
    return sorted(fsspec.filesystem("memory").find("/"))


def adapted() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    inject_adapter(model, PeraConfig(2))
    randomise_adapter(model)
    return model


def same(first: nn.Module, second: nn.Module) -> bool:
    one, other = adapter_state_dict(first), adapter_state_dict(second)
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))


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
    with pytest.raises(OSError, match="connection"):
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


URL = "memory://bucket/x"
REFUSED: dict[str, Callable[[], object]] = {
    "CommonsenseDataModule.train_file": lambda: CommonsenseDataModule(train_file=URL),
    "CommonsenseDataModule.test_folder": lambda: CommonsenseDataModule(test_folder=URL),
    "GlueDataModule.folder": lambda: GlueDataModule(task="cola", folder=URL),
    **{
        f"{kind.__name__}.{name}": lambda kind=kind, name=name: kind(**{name: URL})
        for kind in (InstructionDataModule, TextDataModule)
        for name in ("train_files", "val_files", "test_files", "dataset")
    },
    "PeraCausalLM.pretrained": lambda: pera_lightning.PeraCausalLM(URL),
    "PeraSequenceClassifier.pretrained": lambda: pera_lightning.PeraSequenceClassifier(URL, num_labels=2),
    "export_lora.out_dir": lambda: export_lora(adapted(), URL),
    "export_merged.out_dir": lambda: export_merged("somewhere", URL),
    "export_merged.base": lambda: export_merged(saved(), "out", base=URL),
    "evaluate_commonsense.tasks": lambda: evaluate_commonsense(None, None, URL),  # type: ignore[arg-type]
}
# Shown above to work with URLs, or names within what another option names.
WORK = {
    "AdapterSet.load.directory",
    "AdapterSet.replace.directory",
    "PeraCallback.adapter_dir",
    "PeraCallback.init_from",
    "export_lora.model_or_dir",
    "export_merged.adapter_dir",
    "inject_lora.directory",
    "load_adapter.directory",
    "save_adapter.directory",
}


def saved() -> str:
    return str(save_adapter(adapted(), "memory://bucket/saved"))


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_to_be_local_is_refused_before_the_work(here: Path, name: str) -> None:
    before = os.listdir(here)
    with pytest.raises(ConfigError, match=r"(?s)has to be local.*memory://bucket/x.*name a local path"):
        REFUSED[name]()
    assert os.listdir(here) == before


def test_every_public_path_is_tried() -> None:
    """A new argument that is a path has to find its place in one of the tests of this file."""
    words = ("dir", "folder", "path", "files", "adapter", "init_from", "pretrained", "dataset", "base")
    found = set()
    for name in pera_lightning.__all__:
        public = getattr(pera_lightning, name)
        made = [("", public)] if inspect.isfunction(public) else []
        if inspect.isclass(public):
            made = [("" if method == "__init__" else f".{method}", value) for method, value in vars(public).items()]
            made = [(method, value) for method, value in made if inspect.isfunction(value) and "._" not in method]
        for method, function in made:
            for parameter in inspect.signature(function).parameters.values():
                kind = str(parameter.annotation)
                if "Path" in kind or "Place" in kind or ("str" in kind and parameter.name.startswith(words)):
                    found.add(f"{name}{method}.{parameter.name}")
    # Names that are written down, not read, and of a part of what another argument names.
    found -= {"save_adapter.base_model", "InstructionDataModule.dataset_config", "TextDataModule.dataset_config"}
    tried = {*REFUSED, *WORK}
    assert found <= tried, f"not tried: {sorted(found - tried)}"


LOCAL_OPTIONS = {
    "evaluate": [("--tasks", URL, "--base", "x"), ("--tasks", ".", "--base", URL), ("--tasks", ".", "--out", URL)],
    "export": [
        ("--adapter", "a", "--out", URL),
        ("--adapter", "a", "--out", "b", "--rows", URL),
        ("--adapter", "memory://bucket/saved", "--out", "b", "--base", URL),
    ],
    "inspect": [("--adapter", "a", "--out", URL), ("--adapter", "memory://bucket/saved", "--base", URL)],
    "push": [("--folder", URL, "--repo", "a/b")],
    "compare": [("--config", URL, "--learning_rates", "1"), ("--config", "a", "--learning_rates", "1", "--out", URL)],
    "estimate": [("--config", URL)],
    "chat": [("--adapter", "memory://bucket/saved", "--base", URL)],
    "generate": [("--adapter", "memory://bucket/saved", "--base", URL, "--prompt", "x")],
}


@pytest.mark.parametrize(
    ("tool", "words"), [(tool, words) for tool, several in LOCAL_OPTIONS.items() for words in several]
)
def test_the_command_line_refuses_what_has_to_be_local(here: Path, tool: str, words: tuple[str, ...]) -> None:
    saved()
    if "--config" in words:
        (here / "a").write_text("{}")
    printed = run(tool, *words, folder=here, ok=False)
    assert "has to be local" in printed, printed


def test_every_option_of_a_tool_that_is_a_path_is_tried() -> None:
    tried = {"consolidate.checkpoint", "consolidate.out", "diff.first", "diff.second"}
    for tool, several in LOCAL_OPTIONS.items():
        tried |= {f"{tool}.{word[2:]}" for words in several for word in words[::2]}
    for tool in ("chat", "consolidate", "diff", "evaluate", "export", "generate", "inspect", "push"):
        function = getattr(import_module(f"pera_lightning.cli.{tool}"), tool)
        parameters = inspect.signature(function).parameters
        names = {name for name, value in parameters.items() if "str" in str(value.annotation)}
        # Words, choices, and the name of a file within the base.
        names -= {"gguf_file", "system_prompt", "prompt", "prompts", "repo", "message", "how", "template", "dtype"}
        names -= {"to", "into", "base_dtype"}
        # A folder to read an adapter from, which works everywhere.
        names -= {"adapter"}
        assert {f"{tool}.{name}" for name in names} <= tried, tool


def test_a_path_of_the_user_becomes_a_path_in_one_place() -> None:
    """Whatever else calls `Path` does it with names that this package has made or found itself."""
    own = {
        ("export/place.py", "tempfile.mkdtemp(prefix='.pera-', dir=place)"),
        ("export/room.py", "'/proc/meminfo'"),
        ("checkpoint/atomic.py", "name"),
        ("checkpoint/remote.py", "text[local.end():]"),
        ("checkpoint/remote.py", "path"),
        ("checkpoint/remote.py", "text"),
        ("checkpoint/remote.py", "temporary"),
        ("integration/trained_adapter.py", "tempfile.gettempdir()"),
        # Of a source, whose name has been looked at when it was made.
        ("integration/adapter_source.py", "base"),
        ("integration/adapter_source.py", "source.pretrained"),
        ("integration/merged_certificate.py", "source.pretrained"),
        ("integration/merged_gguf.py", "source.pretrained"),
        ("integration/merged_model.py", "source.pretrained"),
        ("integration/merged_model.py", "self.source.pretrained"),
        (
            "integration/merged_model.py",
            "snapshot_download(source.pretrained, revision=source.revision, local_files_only=True)",
        ),
        ("integration/pretrained.py", "self.pretrained"),
        ("integration/pretrained.py", "source.pretrained"),
    }
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("Path", "open"):
                found.add((path.relative_to(PACKAGE).as_posix(), ", ".join(map(ast.unparse, node.args))))
    assert found == own


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
