from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub
import pytest
import torch

from pera_lightning import PeraConfig, export_lora, inject_adapter, save_adapter
from tests.cli.test_main import run
from tests.support.models import randomise_adapter, tiny_llama


class Hub:
    """Takes what would go over the network."""

    calls: ClassVar[list[tuple[str, dict[str, Any]]]] = []

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.calls.append(("create_repo", {"repo_id": repo_id, **options}))

    def upload_folder(self, **options: Any) -> str:
        self.calls.append(("upload_folder", options))
        return "https://hub/commit"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(Hub, "calls", [])
    torch.manual_seed(0)
    model = tiny_llama()
    inject_adapter(model, PeraConfig(2))
    randomise_adapter(model)
    save_adapter(model, tmp_path / "adapter")
    export_lora(model, tmp_path / "lora")
    for name in ("last.ckpt", "optimizer.pt", "train.jsonl"):
        (tmp_path / "adapter" / name).write_text("private")
    return tmp_path


def test_dry_run(folder: Path) -> None:
    printed = run("push", "--folder", "adapter", "--repo", "me/mine", "--dry_run", "true", folder=folder)
    assert [line.split()[0] for line in printed.splitlines()[:-1]] == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    size = (folder / "adapter/adapter_model.safetensors").stat().st_size
    assert f"adapter_model.safetensors  {size:,} bytes" in printed
    assert "nothing was uploaded" in printed
    assert Hub.calls == []


def test_only_the_adapter_is_uploaded(folder: Path) -> None:
    assert "https://hub/commit" in run("push", "--folder", "adapter", "--repo", "me/mine", folder=folder)
    (made, options), (sent, upload) = Hub.calls
    assert (made, sent) == ("create_repo", "upload_folder")
    assert options == {"repo_id": "me/mine", "private": True, "exist_ok": True}
    assert upload["repo_id"] == "me/mine"
    assert upload["folder_path"] == Path("adapter")
    assert upload["allow_patterns"] == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert "delete_patterns" not in upload


def test_the_calls_are_those_of_huggingface_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import inspect

    run("push", "--folder", "lora", "--repo", "me/mine", "--private", "false", folder=folder)
    calls = list(Hub.calls)
    assert calls[0][1]["private"] is False
    monkeypatch.undo()
    for name, options in calls:
        inspect.signature(getattr(huggingface_hub.HfApi, name)).bind(None, **options)
    assert {"README.md", "export_report.json"} <= set(calls[1][1]["allow_patterns"])


@pytest.mark.parametrize("repo", ["mine", "a b/c", "a/b/c"])
def test_names_that_the_hub_does_not_have(folder: Path, repo: str) -> None:
    printed = run("push", "--folder", "lora", "--repo", repo, "--dry_run", "true", folder=folder, ok=False)
    assert "no repositories of such a name" in printed
    assert repr(repo) in printed


@pytest.mark.parametrize("error", [OSError("not yours"), RuntimeError("no network")])
def test_what_the_hub_refuses(folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(Hub, "create_repo", refuse)
    printed = run("push", "--folder", "lora", "--repo", "me/mine", folder=folder, ok=False)
    assert "The hub did not take the upload" in printed
    assert str(error) in printed


def test_a_folder_without_an_adapter(folder: Path) -> None:
    printed = run("push", "--folder", ".", "--repo", "me/mine", folder=folder, ok=False)
    assert "There is no adapter to upload" in printed
    assert Hub.calls == []


def test_a_merged_model_is_uploaded_with_its_card(folder: Path) -> None:
    from tests.support.pretrained import save_pretrained

    torch.manual_seed(0)
    save_pretrained(folder / "base", tiny_llama())
    run("export", "--adapter", "adapter", "--base", "base", "--out", "merged", "--to", "merged", folder=folder)
    (folder / "merged" / "private.txt").write_text("private")
    run("push", "--folder", "merged", "--repo", "me/mine", folder=folder)
    names = Hub.calls[1][1]["allow_patterns"]
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(names)
    assert "private.txt" not in names
    card = (folder / "merged" / "README.md").read_text()
    assert "AutoModelForCausalLM.from_pretrained('this folder')" in card
