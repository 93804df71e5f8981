from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from torch import Tensor

from pera_lightning import PeraConfig, load_adapter, quantize_model
from pera_lightning.errors import ConfigError, ExportError
from pera_lightning.export.gguf import export_merged_gguf as exporting
from pera_lightning.export.gguf.export_merged_gguf import export_merged_gguf
from pera_lightning.loading.pretrained import PretrainedSource, load_causal_lm
from tests.cli.test_main import run
from tests.support.base_folders import adapt_and_save
from tests.support.gguf_files import reads_gguf, save_gguf
from tests.support.models import tiny_llama
from tests.support.tiny_gguf import write_base_gguf


def logits(folder: Path, file: str, adapter: Path | None = None) -> Tensor:
    model = load_causal_lm(PretrainedSource(str(folder), file), dtype="float32")
    if adapter is not None:
        load_adapter(model, adapter, allow_other_quantization=True)
    with torch.no_grad():
        return model(torch.arange(3, 24).view(3, 7)).logits


def save_both(folder: Path, config: PeraConfig | None = None) -> Path:
    """A base as a GGUF file with a tokenizer, and its adapter."""
    (folder / "base").mkdir()
    save_gguf(tiny_llama(), folder / "base/tiny.gguf")
    model = load_causal_lm(PretrainedSource(str(folder / "base"), "tiny.gguf"), dtype="float32")
    return adapt_and_save(model, folder / "adapter", config, folder / "base/tiny.gguf")


def test_the_file_computes_what_the_adapter_does(tmp_path: Path) -> None:
    adapter = save_both(tmp_path)
    report = export_merged_gguf(adapter, tmp_path / "out", dtype="float32")
    merged = logits(tmp_path / "out", "model.gguf")
    torch.testing.assert_close(merged, logits(tmp_path / "base", "tiny.gguf", adapter), rtol=1e-5, atol=1e-5)
    assert report.certificate is not None
    assert report.certificate.max_difference < 1e-5 < 1e-2 < report.certificate.max_change
    assert report.certificate.positions > 100
    stored = json.loads((tmp_path / "out/export_report.json").read_text())
    assert (stored["to"], stored["merge"]["layers"]) == ("gguf", 14)


def test_half_precision_is_reported(tmp_path: Path) -> None:
    report = export_merged_gguf(save_both(tmp_path), tmp_path / "out")
    assert report.merge is not None
    assert 1e-6 < report.merge.weight_error < report.merge.worst_error < 2**-11
    types = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(tmp_path / "out/model.gguf").tensors}
    assert types["blk.1.ffn_up.weight"] == "F16"
    assert types["token_embd.weight"] == "F32"


@reads_gguf
def test_an_adapter_of_a_4_bit_base_into_an_8_bit_file(tmp_path: Path) -> None:
    model = tiny_llama(hidden_size=64, intermediate_size=96)
    write_base_gguf(model, tmp_path / "small.gguf", "Q8_0")
    quantize_model(model, "nf4")
    adapter = adapt_and_save(model, tmp_path / "adapter", PeraConfig(2), tmp_path / "gone")
    report = export_merged_gguf(adapter, tmp_path / "out", base=str(tmp_path), gguf_file="small.gguf", dtype="float32")
    assert report.certificate is not None
    assert report.certificate.max_difference < 1e-5


@pytest.mark.parametrize(
    ("config", "options", "error", "words"),
    [
        (PeraConfig(2), {"base": "org/model"}, ConfigError, "copy of the base model's GGUF file"),
        (PeraConfig(2), {"base": "base", "gguf_file": "none.gguf"}, ConfigError, "none.gguf"),
        (PeraConfig(2), {"dtype": "int8"}, ConfigError, "dtype cannot have this value"),
        (PeraConfig(2, modules_to_save=["norm"]), {}, ExportError, "modules saved whole"),
    ],
)
def test_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    config: PeraConfig,
    options: dict[str, str],
    error: type[Exception],
    words: str,
) -> None:
    adapter = save_both(tmp_path, config)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words):
        export_merged_gguf(adapter, "out", **options)  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_the_base_of_the_adapter_is_never_replaced(tmp_path: Path) -> None:
    export_merged_gguf(save_both(tmp_path), tmp_path / "out", dtype="float32", compare=False)
    model = load_causal_lm(PretrainedSource(str(tmp_path / "out"), "model.gguf"), dtype="float32")
    adapt_and_save(model, tmp_path / "second", PeraConfig(2), tmp_path / "out/model.gguf")
    before = (tmp_path / "out/model.gguf").read_bytes()
    with pytest.raises(ExportError, match="take the place of its base model"):
        export_merged_gguf(tmp_path / "second", tmp_path / "out")
    assert (tmp_path / "out/model.gguf").read_bytes() == before


def test_another_base_of_the_same_shapes(tmp_path: Path) -> None:
    adapter = save_both(tmp_path)
    save_gguf(tiny_llama(), tmp_path / "other.gguf")
    with pytest.raises(ExportError, match=r"(?s)not the adapter's base model.*other weights"):
        export_merged_gguf(adapter, tmp_path / "out", base=str(tmp_path), gguf_file="other.gguf", compare=False)
    # Merged already: merging once more would be wrong too.
    export_merged_gguf(adapter, tmp_path / "once", compare=False)
    with pytest.raises(ExportError, match="not the adapter's base model"):
        export_merged_gguf(
            adapter, tmp_path / "twice", base=str(tmp_path / "once"), gguf_file="model.gguf", compare=False
        )
    assert not (tmp_path / "twice").exists()


def test_a_crash_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = save_both(tmp_path)
    monkeypatch.setattr(exporting, "_certify", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_merged_gguf(adapter, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_command(tmp_path: Path) -> None:
    save_both(tmp_path)
    words = ("--adapter", "adapter", "--out", "out", "--to", "gguf", "--dtype", "float32")
    printed = run("export", *words, folder=tmp_path)
    assert "the largest is the same at 100.00%" in printed
    assert printed.splitlines()[-1] == "llama-cli -m out/model.gguf"
    (tmp_path / "out/mine").touch()
    run("export", *words, folder=tmp_path)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["export_report.json", "mine", "model.gguf"]
