"""What is found in place of a checkpoint is named, with what to do about it."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
import torch
from safetensors.torch import save_file

from pera_lightning.storage.recognition.found_instead import found_instead
from pera_lightning.storage.remote import place


def archive(path: Path, *names: str) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, "text")


def cut(path: Path) -> None:
    torch.save({"a": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])


def tar(path: Path) -> None:
    with tarfile.open(path, "w") as file:
        file.add(__file__)


FILES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "nothing": (lambda path: None, "nothing", "correct the path"),
    "link": (lambda path: path.symlink_to("none"), "a link to nothing", "correct the path"),
    "below a file": (lambda path: path.parent.rmdir() or path.parent.write_text("a"), "nothing", "correct the path"),
    "pipe": (os.mkfifo, "a named pipe", "file that can be read"),
    "empty": (lambda path: path.write_bytes(b""), "an empty file", "copy it again"),
    "zeros": (lambda path: path.write_bytes(bytes(5000)), "zeros", "copy it again"),
    "lfs": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid"), "git-lfs", "git lfs pull"),
    "html": (lambda path: path.write_text("\ufeff\n <!DOCTYPE html><html>404"), "an HTML page", "download"),
    "xml": (lambda path: path.write_text('<?xml version="1.0"?><Error>'), "an XML page", "download"),
    "safetensors": (lambda path: save_file({"a": torch.ones(2)}, path), "a safetensors file", "load_adapter"),
    "no safetensors": (lambda path: save_file({}, path), "a safetensors file", "load_adapter"),
    "gguf": (lambda path: path.write_bytes(b"GGUF\3\0\0\0"), "a GGUF file", "correct the path"),
    "gzip": (lambda path: path.write_bytes(gzip.compress(b"a")), "gzip", "gunzip"),
    "tar": (tar, "a tar archive", "unpack it"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "a pickle", "copy it again"),
    "json": (lambda path: path.write_text('{"a": 1}'), "a JSON file", "correct the path"),
    "text": (lambda path: path.write_text("hello\n"), "a text file", "correct the path"),
    "long text": (lambda path: path.write_text("a" + "é" * 5000), "a text file", "correct the path"),
    "bytes": (
        lambda path: path.write_bytes(b"\x07\xff\x00\x03" * 9),
        "no form that torch.save writes",
        "copy it again",
    ),
    "cut off": (cut, "ends too early", "copy it again"),
    "other archive": (lambda path: archive(path, "a.txt"), "torch.save did not write", "correct the path"),
    "program": (lambda path: archive(path, "a/constants.pkl", "a/data.pkl"), "TorchScript", "correct the path"),
}


def adapter(kind: str) -> Callable[[Path], object]:
    return lambda path: (path / "adapter_config.json").write_text(json.dumps({"peft_type": kind}))


def touched(*names: str) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        for name in names:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).touch()

    return write


FOLDERS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "empty": (touched(), "an empty folder", "correct the path"),
    "other": (touched("a", "b"), "2 entries", "correct the path"),
    "PERA": (adapter("PERA"), "a PERA adapter's folder", "load_adapter"),
    "LoRA": (adapter("LORA"), "a LoRA of PEFT", "inject_lora.*--pera.init_from"),
    "IA3": (adapter("IA3"), "no LoRA", "correct the path"),
    "checkpoints": (touched("a.ckpt", "b.ckpt"), r"a\.ckpt, b\.ckpt", r"name one of them.*b\.ckpt"),
    "many": (touched(*map("{}.ckpt".format, range(9))), r"0\.ckpt, 1\.ckpt, 2\.ckpt and 6 more", "name one"),
    "run": (touched("version_0/checkpoints/a.ckpt"), r"a\.ckpt", r"version_0/checkpoints/a\.ckpt"),
    "no list": (touched("meta.pt", "__0_0.distcp"), r"without \.metadata", "hidden files"),
    "no rest": (touched(".metadata", "__0_0.distcp"), r"without meta\.pt", "copy the whole folder"),
    "transformers": (touched("trainer_state.json", "optimizer.pt"), "transformers' Trainer", "Lightning's"),
    "model": (touched("config.json", "model.safetensors"), "a whole model", "transformers"),
}


def check(path: Path, what: str, cure: str) -> None:
    found = found_instead(place(path))
    assert found is not None
    assert re.search(what, found.what), found
    assert re.search(cure, found.cure), found


@pytest.mark.parametrize("name", FILES)
def test_files(tmp_path: Path, name: str) -> None:
    write, what, cure = FILES[name]
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "file.ckpt")
    check(tmp_path / "folder" / "file.ckpt", what, cure)


@pytest.mark.parametrize("name", FOLDERS)
def test_folders(tmp_path: Path, name: str) -> None:
    write, what, cure = FOLDERS[name]
    write(tmp_path)
    check(tmp_path, what, cure)


def test_weights_are_of_the_folder_that_they_are_in(tmp_path: Path) -> None:
    adapter("LORA")(tmp_path)
    save_file({"a": torch.ones(2)}, tmp_path / "adapter_model.safetensors")
    check(tmp_path / "adapter_model.safetensors", "a safetensors file, of a LoRA of PEFT", "inject_lora")


@pytest.mark.parametrize("is_new", [True, False])
def test_nothing_is_said_against_files_of_torch(tmp_path: Path, is_new: bool) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "a", _use_new_zipfile_serialization=is_new)
    assert found_instead(tmp_path / "a") is None


@pytest.mark.parametrize("names", [(".metadata", "meta.pt"), ("checkpoint/mp_rank_00_model_states.pt",)])
def test_nothing_is_said_against_folders_of_several_processes(tmp_path: Path, names: tuple[str, ...]) -> None:
    touched(*names)(tmp_path)
    assert found_instead(tmp_path) is None


def test_at_a_url() -> None:
    fsspec.filesystem("memory").pipe("/found/a.ckpt", b"<html>")
    for path, what in (("found/a.ckpt", "an HTML page"), ("found", "a folder with checkpoints"), ("none", "nothing")):
        found = found_instead(place(f"memory://{path}"))
        assert found is not None
        assert what in found.what
