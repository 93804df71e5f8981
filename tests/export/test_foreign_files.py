"""Names and links in a base model's folder: no file outside of it is read, copied or written."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pera_lightning.errors import ConfigError
from pera_lightning.export.merged.base_files import BaseFiles, is_complete
from pera_lightning.export.merged.companions import copy_companions


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file({"a": torch.ones(2)}, folder / "part-1.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "secret.safetensors")
    return folder


def index(folder: Path, weight_map: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_names_of_the_folder_are_read(base: Path) -> None:
    index(base, {"a": "part-1.safetensors"})
    assert is_complete(base)
    assert BaseFiles.of(base).read("a").tolist() == [1, 1]


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "./part-1.safetensors",
        "sub/../part-1.safetensors",
        "..\\secret.safetensors",
        "C:part-1.safetensors",
        "/etc/passwd",
        "config.json",
        "..",
        "",
        "a\0.safetensors",
        None,
        7,
        ["part-1.safetensors"],
    ],
    ids=repr,
)
def test_other_names_are_refused(base: Path, tmp_path: Path, name: Any) -> None:
    for weight_map in (
        {"a": name},
        {"a": "part-1.safetensors", "b": name},
        {"a": str(tmp_path / "secret.safetensors")},
    ):
        index(base, weight_map)
        for read in (is_complete, BaseFiles.of):
            with pytest.raises(ConfigError, match="no safetensors file of this folder"):
                read(base)


@pytest.mark.parametrize("weight_map", [None, [], "part-1.safetensors", 3])
def test_an_index_without_names_is_refused(base: Path, weight_map: Any) -> None:
    index(base, weight_map)
    with pytest.raises(ConfigError, match="no weight_map"):
        is_complete(base)


def test_links_that_lead_outside_are_not_copied(base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    (base / "vocab.txt").write_text("vocab")
    os.symlink("vocab.txt", base / "merges.txt")
    os.symlink(tmp_path / "secret.txt", base / "LICENSE")
    (base / "additional_chat_templates").mkdir()
    os.symlink(tmp_path / "secret.txt", base / "additional_chat_templates" / "tool.jinja")
    out = tmp_path / "out"
    out.mkdir()
    with caplog.at_level(logging.WARNING):
        copy_companions(base, out)
    copied = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert copied == {"vocab.txt", "merges.txt"}
    assert (out / "merges.txt").read_text() == "vocab"
    assert "LICENSE is not copied" in caplog.text


def test_links_of_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b/snapshots/0f", tmp_path / "models--a--b/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "12").write_text("vocab")
    os.symlink("../../blobs/12", snapshot / "vocab.txt")
    (tmp_path / "out").mkdir()
    copy_companions(snapshot, tmp_path / "out")
    assert (tmp_path / "out/vocab.txt").read_text() == "vocab"
