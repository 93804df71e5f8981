"""What a path holds that is no checkpoint of a Trainer, in words for messages, and what to do with it."""

from __future__ import annotations

import codecs
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

from pera_lightning.errors import one_line
from pera_lightning.storage.bounded_json import JsonError, read_json
from pera_lightning.storage.recognition.adapter_kind import CONFIG_FILE, PEFT_TYPE, WEIGHTS_FILE
from pera_lightning.storage.regular_file import open_regular
from pera_lightning.storage.remote import Place

_HEAD = 4096
"""Bytes of a file that are looked at."""
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""What `torch.save` began files with before torch 1.6, and does so still when asked."""
_AGAIN = "copy it again, or take an earlier checkpoint"
PATH = "correct the path"
_ADAPTER = (
    "it is an adapter already: load_adapter(model, folder), --adapter of generate, chat, evaluate and export, or the "
    "ckpt_path of validate, test and predict where no strategy shards"
)
_LORA = "begin from it: inject_lora(model, folder), or PeraCallback(init_from=folder) (--pera.init_from)"


class FoundInstead(NamedTuple):
    """What is there.

    Attributes:
        what: Such as "an HTML page".
        cure: What to do, as a `fix` of an error.
    """

    what: str
    cure: str


def found_instead(path: Place) -> FoundInstead | None:
    """What a path holds instead of a checkpoint; None where nothing speaks against one.

    It is for messages: nothing is raised, nothing in a file is made or called, and no pipe is waited for.

    Args:
        path: A file or folder, here or at a URL.
    """
    # Any: file systems have errors of their own, and a message must not end in another one.
    try:
        if path.is_dir():
            return _folder(path)
        with open_regular(path) if isinstance(path, Path) else path.open() as file:
            return _file(file, path)
    except (FileNotFoundError, NotADirectoryError):
        is_link = isinstance(path, Path) and path.is_symlink()
        return FoundInstead("a link to nothing" if is_link else "nothing", PATH)
    except Exception as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or one_line(error)
        return FoundInstead(reason, "name a file that can be read")


def _file(file: IO[bytes], path: Place) -> FoundInstead | None:
    head = file.read(_HEAD)
    if head.startswith(b"PK\x03\x04"):
        return _archive(file)
    if head.startswith(LEGACY):
        return None
    return next((found for matches, found in _KINDS if matches(head)), None) or _weights(head, path) or _UNKNOWN


def _archive(file: IO[bytes]) -> FoundInstead | None:
    try:
        with zipfile.ZipFile(file) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
    # Any: a damaged one makes of the library what it says.
    except Exception:
        return FoundInstead("a file that ends too early, or is damaged at its end", _AGAIN)
    if "constants.pkl" in names:
        return FoundInstead("a TorchScript program", PATH)
    return None if "data.pkl" in names else FoundInstead("an archive that torch.save did not write", PATH)


def _weights(head: bytes, path: Place) -> FoundInstead | None:
    # Eight bytes with the length of a header in JSON, and that.
    if not re.match(rb"(?s).{5}\0{3}\{\s*[\"}]", head):
        return None
    beside = _adapter(path.parent) if path.name == WEIGHTS_FILE else None
    what = "a safetensors file" + (f", of {beside.what}" if beside else "")
    return FoundInstead(
        what, beside.cure if beside else f"give the folder that it is in: {_ADAPTER}; of a LoRA, {_LORA}"
    )


def _is_text(head: bytes) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        # A character may be cut at the end of what was read.
        text = decoder.decode(head, final=len(head) < _HEAD)
    except UnicodeDecodeError:
        return False
    return all(sign.isprintable() or sign.isspace() for sign in text)


def _begins(*starts: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(starts)


_KINDS: tuple[tuple[Callable[[bytes], bool], FoundInstead], ...] = (
    (lambda head: not head, FoundInstead("an empty file", _AGAIN)),
    (lambda head: not head.strip(b"\0"), FoundInstead("a file that begins with zeros, as a crash leaves it", _AGAIN)),
    (
        _begins(b"version https://git-lfs"),
        FoundInstead("a pointer of git-lfs, in place of the file itself", "fetch the file: git lfs pull"),
    ),
    (
        _begins(b"<!doctype html", b"<html", b"<head", b"<body"),
        FoundInstead("an HTML page", "download the file itself: the page may say why it was not given"),
    ),
    (_begins(b"<?xml", b"<error"), FoundInstead("an XML page", "download the file itself")),
    (_begins(b"gguf"), FoundInstead("a GGUF file", PATH)),
    (lambda head: head[:2] == b"\x1f\x8b", FoundInstead("a compressed file (gzip)", "unpack it: gunzip")),
    (lambda head: head[257:262] == b"ustar", FoundInstead("a tar archive", "unpack it")),
    (
        lambda head: re.match(rb"\x80[\1-\5]", head) is not None,
        FoundInstead("a pickle that torch.save did not write, or a damaged one", _AGAIN),
    ),
    (lambda head: _is_text(head) and head.lstrip()[:1] in (b"{", b"["), FoundInstead("a JSON file", PATH)),
    (_is_text, FoundInstead("a text file", PATH)),
)
"""Whether a file begins so, and what it is then; in this order."""
_UNKNOWN = FoundInstead("a file of no form that torch.save writes, or a damaged one", _AGAIN)


def _folder(folder: Place) -> FoundInstead | None:
    names = set(os.listdir(folder) if isinstance(folder, Path) else folder.names())
    # A list and the rest; or DeepSpeed's.
    if {".metadata", "meta.pt"} <= names or (folder / "checkpoint" / "mp_rank_00_model_states.pt").is_file():
        return None
    return (
        (_adapter(folder) if CONFIG_FILE in names else None)
        or _parts(names)
        or _checkpoints(folder, names)
        or _model(names)
        or FoundInstead(
            f"a folder with {len(names)} entries, none of a checkpoint" if names else "an empty folder", PATH
        )
    )


def _adapter(folder: Place) -> FoundInstead | None:
    try:
        values = read_json(folder / CONFIG_FILE)
    except (OSError, JsonError):
        return None
    kind = values.get("peft_type") if isinstance(values, dict) else None
    if kind == PEFT_TYPE:
        return FoundInstead("a PERA adapter's folder", _go_on(folder) + _ADAPTER)
    if kind == "LORA":
        return FoundInstead("a LoRA of PEFT", _LORA)
    return FoundInstead("an adapter of PEFT that is no LoRA", PATH) if isinstance(kind, str) else None


def _go_on(folder: Place) -> str:
    """How to go on with the fit that wrote an adapter: from the checkpoint that lies beside its folder."""
    beside = folder.parent / "checkpoints"
    found = sorted(beside.glob("*.ckpt")) if isinstance(beside, Path) else []
    return f"to go on with its fit, name {found[-1]}; else " if found else ""


def _parts(names: set[str]) -> FoundInstead | None:
    """A folder of several processes that something is missing from."""
    whole = "copy the whole folder, hidden files too, or take an earlier checkpoint"
    if ".metadata" in names:
        return FoundInstead("a folder of several processes without meta.pt", whole)
    if "meta.pt" in names or any(name.endswith(".distcp") for name in names):
        return FoundInstead("a folder of several processes without .metadata", whole)
    return None


def _checkpoints(folder: Place, names: set[str]) -> FoundInstead | None:
    """A folder of a run, or that which ModelCheckpoint writes into."""
    found: list[Place] = [folder / name for name in sorted(names) if name.endswith(".ckpt")]
    if not found and isinstance(folder, Path):
        found += sorted([*folder.glob("checkpoints/*.ckpt"), *folder.glob("*/checkpoints/*.ckpt")])
    if not found:
        return None
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return FoundInstead(
        f"a folder with checkpoints in it: {', '.join(path.name for path in found[:3])}{more}",
        f"name one of them, e.g. {found[-1]}",
    )


def _model(names: set[str]) -> FoundInstead | None:
    if "trainer_state.json" in names:
        return FoundInstead("a checkpoint of transformers' Trainer", "name one that Lightning's Trainer wrote")
    if "config.json" in names and any(name.endswith((".safetensors", ".bin")) for name in names):
        return FoundInstead(
            "a whole model (a base, or a merged export)",
            "load it by from_pretrained of transformers; it needs no adapter",
        )
    return None
