"""Where an export goes."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pera_lightning import export_lora, save_adapter
from pera_lightning.errors import ExportError, FolderError
from pera_lightning.export.lora.peft_format import read_peft
from pera_lightning.functional import expanded_rank
from pera_lightning.storage import out_folder
from tests.support.exports import adapted, contents

# PEFT looks at an attribute of transformers that is about to be renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def test_not_over_a_pera_adapter(tmp_path: Path) -> None:
    model = adapted()
    save_adapter(model, tmp_path)
    before = contents(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(ExportError, match="take the place of a PERA adapter"):
            export_lora(model, tmp_path, overwrite=overwrite)
    assert contents(tmp_path) == before
    # Nor where one came into an export.
    export_lora(model, tmp_path / "lora")
    for path in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(tmp_path / path, tmp_path / "lora" / path)
    with pytest.raises(ExportError, match="take the place of a PERA adapter"):
        export_lora(model, tmp_path / "lora")


@pytest.mark.parametrize("to", ["peft", "vllm", "safetensors"])
def test_again_into_its_own_folder(tmp_path: Path, to: Any) -> None:
    model = adapted()
    export_lora(model, tmp_path / "out", 3, to=to)
    (tmp_path / "out/notes.txt").write_text("mine")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert export_lora(model, tmp_path / "out", to=to).rank == expanded_rank(4, 2)
    assert (tmp_path / "out/notes.txt").read_text() == "mine"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert json.loads((tmp_path / "out/export_report.json").read_text())["files"] == sorted(set(names) - {"notes.txt"})
    if to == "peft":
        ranks = {factors.rank for factors in read_peft(tmp_path / "out").factors.values()}
        assert ranks == {expanded_rank(4, 2)}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_over_an_export_of_an_earlier_version(tmp_path: Path) -> None:
    """Their reports did not list the files."""
    model = adapted()
    export_lora(model, tmp_path, 3)
    report = tmp_path / "export_report.json"
    report.write_text(
        json.dumps({name: value for name, value in json.loads(report.read_text()).items() if name != "files"})
    )
    assert export_lora(model, tmp_path).exact
    assert len(list(tmp_path.iterdir())) == 4


def of_peft(folder: Path) -> None:
    model = adapted()
    export_lora(model, folder)
    (folder / "export_report.json").unlink()


def a_base(folder: Path) -> None:
    adapted().save_pretrained(folder)


def factors(folder: Path) -> None:
    export_lora(adapted(), folder, to="safetensors")


def a_card(folder: Path) -> None:
    (folder / "README.md").write_text("mine")


def a_report(folder: Path) -> None:
    (folder / "export_report.json").write_text('{"to": "peft", "findings": "none"}')


def a_cut_report(folder: Path) -> None:
    export_lora(adapted(), folder)
    text = (folder / "export_report.json").read_text()
    (folder / "export_report.json").write_text(text[: len(text) // 2])


@pytest.mark.parametrize("fill", [of_peft, a_base, factors, a_card, a_report, a_cut_report])
def test_not_among_other_files(tmp_path: Path, fill: Callable[[Path], None]) -> None:
    model = adapted()
    (tmp_path / "theirs").mkdir()
    fill(tmp_path / "theirs")
    before = contents(tmp_path / "theirs")
    with pytest.raises(ExportError, match=r"(?s)The folder is not ours.*an export to 'peft'.*--overwrite true"):
        export_lora(model, tmp_path / "theirs")
    assert contents(tmp_path / "theirs") == before
    export_lora(model, tmp_path / "theirs", overwrite=True)
    after = contents(tmp_path / "theirs")
    ours = {"README.md", "adapter_config.json", "adapter_model.safetensors", "export_report.json"}
    assert {name: value for name, value in before.items() if name not in ours} == {
        name: value for name, value in after.items() if name not in ours
    }
    assert read_peft(tmp_path / "theirs").factors


def test_another_file_of_a_name_that_is_written(tmp_path: Path) -> None:
    """A report of factors, beside which somebody keeps a card: nothing tells that the card is ours."""
    export_lora(adapted(), tmp_path, to="safetensors")
    report = tmp_path / "export_report.json"
    values = json.loads(report.read_text())
    report.write_text(json.dumps({**values, "to": "peft", "files": ["export_report.json"]}))
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(FolderError, match=r"(?s)The folder is not ours.*with 'README.md'"):
        export_lora(adapted(), tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_not_into_the_folder_of_the_base(tmp_path: Path) -> None:
    a_base(tmp_path / "base")
    save_adapter(adapted(), tmp_path / "adapter", base_model=str(tmp_path / "base"))
    before = contents(tmp_path / "base")
    for overwrite in (False, True):
        with pytest.raises(ExportError, match="take the place of its base model"):
            export_lora(tmp_path / "adapter", tmp_path / "base", overwrite=overwrite)
    assert contents(tmp_path / "base") == before


def test_places_that_can_be_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name, got in (
        ("file", "file, which is a file"),
        ("file/below", "file, which is a file"),
        ("link", "link, which is a link to nothing"),
    ):
        with pytest.raises(ExportError, match=f"(?s)cannot be written to.*{got}"):
            export_lora(adapted(), tmp_path / name)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ExportError, match=r"(?s)cannot be written.*too long"):
        export_lora(adapted(), tmp_path / ("x" * 300))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(out_folder.shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(ExportError, match=r"(?s)out, for an export.*10 free.*with room for [\d,]+ bytes"):
        export_lora(adapted(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="limits of processes")
def test_a_disk_that_gets_full(tmp_path: Path) -> None:
    """By the limit that a process has for its files: what safetensors says of it is no OSError."""
    model = adapted()
    export_lora(model, tmp_path / "out", 3)
    before = contents(tmp_path / "out")
    with limited_files(4000), pytest.raises(FolderError, match=r"(?s)out, for an export.*too large"):
        export_lora(model, tmp_path / "out")
    assert contents(tmp_path / "out") == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@contextmanager
def limited_files(size: int) -> Iterator[None]:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
