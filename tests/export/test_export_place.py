"""Where an export goes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from pera_lightning import export_lora, save_adapter
from pera_lightning.errors import ExportError
from pera_lightning.export.peft_format import read_peft
from pera_lightning.functional import expanded_rank
from tests.support.exports import adapted, contents

# PEFT looks at an attribute of transformers that is about to be renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def test_not_over_a_pera_adapter(tmp_path: Path) -> None:
    model = adapted()
    save_adapter(model, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ExportError, match="take the place of a PERA adapter"):
        export_lora(model, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match="needs a folder"):
        export_lora(model, tmp_path / "file")


def test_again_into_its_own_folder(tmp_path: Path) -> None:
    model = adapted()
    export_lora(model, tmp_path / "out", 3)
    (tmp_path / "out/notes.txt").write_text("mine")
    assert export_lora(model, tmp_path / "out").rank == expanded_rank(4, 2)
    assert {factors.rank for factors in read_peft(tmp_path / "out").factors.values()} == {expanded_rank(4, 2)}
    assert (tmp_path / "out/notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_not_among_other_files(tmp_path: Path) -> None:
    model = adapted()
    model.save_pretrained(tmp_path / "base")
    export_lora(model, tmp_path / "factors", to="safetensors")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/README.md").write_text("mine")
    for name, got in (
        ("base", "which is not empty"),
        ("factors", "but an export to 'safetensors'"),
        ("notes", "not empty"),
    ):
        before = contents(tmp_path / name)
        with pytest.raises(ExportError, match=f"(?s)mix with other files.*{got}"):
            export_lora(model, tmp_path / name)
        assert contents(tmp_path / name) == before


def test_places_that_can_be_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name, got in (("file/below", "file, which is a file"), ("link", "link, which is a link to nothing")):
        with pytest.raises(ExportError, match=f"(?s)needs a folder.*{got}"):
            export_lora(adapted(), tmp_path / name)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ExportError, match=r"(?s)cannot be written.*too long"):
        export_lora(adapted(), tmp_path / ("x" * 300))
    beside: list[Path] = []
    make = tempfile.mkdtemp
    monkeypatch.setattr(tempfile, "mkdtemp", lambda prefix, dir: beside.append(dir) or make(prefix=prefix, dir=dir))
    (tmp_path / "mounted").mkdir()
    export_lora(adapted(), tmp_path / "mounted")
    # What is beside a mounted folder is on another file system.
    assert beside == [tmp_path / "mounted"]
    assert sorted(path.name for path in (tmp_path / "mounted").iterdir()) == sorted(
        ["README.md", "adapter_config.json", "adapter_model.safetensors", "export_report.json"]
    )
