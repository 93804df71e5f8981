from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from pera_lightning import save_adapter
from pera_lightning.export import export_lora
from pera_lightning.storage.atomic import replacing
from tests.support.exports import adapted

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="rights are those of POSIX")


def rights(folder: Path) -> dict[str, str]:
    return {path.name: oct(path.stat().st_mode & 0o7777) for path in folder.iterdir()}


@pytest.mark.parametrize(("mask", "expected"), [(0o022, "0o644"), (0o027, "0o640")])
def test_all_files_have_the_rights_that_the_umask_gives(tmp_path: Path, mask: int, expected: str) -> None:
    before = os.umask(mask)
    try:
        save_adapter(adapted(), tmp_path / "adapter")
        for to in ("peft", "safetensors"):
            export_lora(tmp_path / "adapter", tmp_path / to, to=to)
    finally:
        os.umask(before)
    for name in ("adapter", "peft", "safetensors"):
        assert set(rights(tmp_path / name).values()) == {expected}


def test_the_rights_that_a_file_had_stay(tmp_path: Path) -> None:
    save_adapter(adapted(), tmp_path)
    (tmp_path / "adapter_model.safetensors").chmod(0o660)
    (tmp_path / "adapter_config.json").chmod(0o600)
    before = rights(tmp_path)
    save_adapter(adapted(), tmp_path)
    assert rights(tmp_path) == before
    (tmp_path / "file").touch(0o600)
    with replacing(tmp_path / "file") as temporary:
        temporary.write_text("new")
    assert rights(tmp_path)["file"] == "0o600"
