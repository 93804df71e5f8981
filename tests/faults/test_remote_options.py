"""Every argument and option that is a path takes a URL, or refuses it before the work and says what to do."""

from __future__ import annotations

import ast
import inspect
import os
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest

import pera_lightning
from pera_lightning import (
    ClassificationDataModule,
    CommonsenseDataModule,
    GlueDataModule,
    InstructionDataModule,
    TextDataModule,
    export_lora,
    export_merged,
    save_adapter,
)
from pera_lightning.errors import ConfigError
from pera_lightning.evaluation import evaluate_commonsense
from tests.cli.test_main import run
from tests.conftest import ROOT
from tests.support.remote import adapted, no_folder_of_a_scheme

PACKAGE = ROOT / "pera_lightning"


@pytest.fixture(autouse=True)
def here(tmp_path: Path) -> Iterator[Path]:
    with no_folder_of_a_scheme(tmp_path):
        yield tmp_path


URL = "memory://bucket/x"
REFUSED: dict[str, Callable[[], object]] = {
    "CommonsenseDataModule.train_file": lambda: CommonsenseDataModule(train_file=URL),
    "CommonsenseDataModule.test_folder": lambda: CommonsenseDataModule(test_folder=URL),
    "GlueDataModule.folder": lambda: GlueDataModule(task="cola", folder=URL),
    **{
        f"{kind.__name__}.{name}": lambda kind=kind, name=name: kind(**{name: URL})
        for kind in (ClassificationDataModule, InstructionDataModule, TextDataModule)
        for name in ("train_files", "val_files", "test_files", "dataset")
    },
    "PeraCausalLM.pretrained": lambda: pera_lightning.PeraCausalLM(URL),
    "PeraSequenceClassifier.pretrained": lambda: pera_lightning.PeraSequenceClassifier(URL, num_labels=2),
    "export_lora.out_dir": lambda: export_lora(adapted(), URL),
    "export_merged.out_dir": lambda: export_merged("somewhere", URL),
    "export_merged.base": lambda: export_merged(saved(), "out", base=URL),
    "load_adapted_model.base": lambda: pera_lightning.load_adapted_model(saved(), base=URL),
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
    "load_adapted_model.adapter",
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
    found -= {"save_adapter.base_model"} | {name for name in found if name.endswith("DataModule.dataset_config")}
    tried = {*REFUSED, *WORK}
    assert found <= tried, f"not tried: {sorted(found - tried)}"


LOCAL_OPTIONS = {
    "evaluate": [
        ("--tasks", URL, "--base", "x"),
        ("--tasks", ".", "--base", URL),
        ("--tasks", ".", "--out", URL),
        ("--tasks", "piqa", "--data", URL, "--base", "x"),
        ("--tasks", "x", "--include_path", URL, "--base", "x"),
    ],
    "export": [
        ("--adapter", "memory://bucket/saved", "--out", URL),
        ("--adapter", "memory://bucket/saved", "--out", "b", "--rows", URL),
        ("--adapter", "memory://bucket/saved", "--out", "b", "--base", URL),
    ],
    "inspect": [
        ("--adapter", "memory://bucket/saved", "--out", URL),
        ("--adapter", "memory://bucket/saved", "--base", URL),
    ],
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
        (here / "a").write_text("{model: PeraCausalLM, data: TextDataModule}")
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
        names -= {"to", "into", "base_dtype", "layer"}
        # Folders to read an adapter from, which works everywhere.
        names -= {"adapter", "against"}
        assert {f"{tool}.{name}" for name in names} <= tried, tool


def test_a_path_of_the_user_becomes_a_path_in_one_place() -> None:
    """Whatever else calls `Path` does it with names that this package has made or found itself."""
    own = {
        ("export/merged/room.py", "'/proc/meminfo'"),
        ("storage/remote.py", "text[local.end():]"),
        ("storage/remote.py", "os.path.expanduser(path)"),
        ("storage/remote.py", "text"),
        ("storage/remote.py", "temporary"),
        ("storage/temporaries.py", "_BOOT"),
        ("storage/whole_folder.py", "temporary"),
        ("storage/whole_folder.py", "temporary, name"),
        ("checkpoint/training/distributed_metadata.py", "self.path"),
        # Only compared with a folder.
        ("checkpoint/adapter_folder.py", "base_model"),
        # Of a local file, or one that was downloaded.
        ("storage/gguf_header.py", "path"),
        ("storage/gguf_header.py", "path, 'rb'"),
        ("data/chat/template_process.py", "__file__"),
        ("data/chat/template_worker.py", "'/proc/self/statm'"),
        ("cli/compare/run_record.py", "'/proc/self/status'"),
        ("cli/compare/run_record.py", "'/proc/self/clear_refs'"),
        # A temporary one.
        ("cli/compare/trial.py", "folder"),
        ("callback/trained/trained_adapter.py", "tempfile.gettempdir()"),
        # Out of a checkpoint, only compared with each other.
        ("callback/resume/restored_callbacks.py", "path"),
        ("callback/resume/restored_callbacks.py", "dirpath"),
        ("loading/tokenizer_trial.py", "__file__"),
        # Of a file that was found, or downloaded.
        ("loading/tokenizer_worker.py", "question['file']"),
        ("loading/pretrained_tokenizer.py", "found"),
        # Of a source, whose name has been looked at when it was made.
        ("loading/adapter_source.py", "base"),
        ("loading/adapter_source.py", "source.pretrained"),
        ("export/merged/merged_certificate.py", "source.pretrained"),
        ("export/gguf/export_merged_gguf.py", "source.pretrained"),
        ("export/merged/merged_model.py", "source.pretrained"),
        ("export/merged/merged_model.py", "self.source.pretrained"),
        (
            "export/merged/merged_model.py",
            "snapshot_download(source.pretrained, revision=source.revision, local_files_only=True)",
        ),
        ("loading/model_place.py", "pretrained"),
        # The hub's own cache.
        (
            "loading/model_place.py",
            "constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type='model'), 'snapshots'",
        ),
        ("loading/pretrained_tokenizer.py", "source.pretrained"),
        ("loading/pretrained.py", "self.pretrained"),
        # Not of a URL; and of installed packages.
        ("cli/options/given.py", "value"),
        ("cli/options/signatures.py", "place, *parts"),
        ("cli/options/signatures.py", "place, *parts, '__init__.py'"),
        ("loading/pretrained.py", "source.pretrained"),
    }
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("Path", "open"):
                found.add((path.relative_to(PACKAGE).as_posix(), ", ".join(map(ast.unparse, node.args))))
    assert found == own
