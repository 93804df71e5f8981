"""Exports that are loaded in part, or that compute something else than the adapter, and end well."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pera_lightning import (
    PeraConfig,
    export_lora,
    inject_adapter,
    merge_adapter,
    save_adapter,
)
from pera_lightning.errors import ConfigError, ExportError
from pera_lightning.export.certificate import Certificate, Reference
from pera_lightning.export.forms import LORA_FORMS
from pera_lightning.export.gguf import gguf_writing
from pera_lightning.export.gguf.export_merged_gguf import export_merged_gguf
from pera_lightning.export.lora.lora_factors import LoraFactors
from pera_lightning.export.merged import merged_shards
from pera_lightning.export.merged.merged_model import export_merged
from tests.cli.test_main import run
from tests.export.gguf.test_export_merged_gguf import save_both
from tests.support.exports import adapted, contents
from tests.support.models import randomise_adapter, tiny_llama
from tests.support.pretrained import save_pretrained

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
IDS = torch.arange(3, 24).view(3, 7)


def without_a_layer(factors: Callable[..., LoraFactors], layer: str) -> Callable[..., LoraFactors]:
    """The factors of an adapter, those of one layer with the wrong sign."""

    def wrong(self: Any, name: str) -> LoraFactors:
        down, up = factors(self, name)
        return LoraFactors(down, -up if name == layer else up)

    return wrong


LAYER = "model.layers.1.mlp.down_proj"


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16"])
@pytest.mark.parametrize("wrong", [False, True])
def test_a_merged_model_that_computes_something_else(
    wrong: bool, dtype: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_llama()
    save_pretrained(tmp_path / "base", base)
    inject_adapter(base, PeraConfig(4))
    randomise_adapter(base, 0.3)
    save_adapter(base, tmp_path / "adapter", base_model=str(tmp_path / "base"))
    if wrong:
        tensors = merged_shards.PeraTensors
        monkeypatch.setattr(tensors, "factors", without_a_layer(tensors.factors, LAYER))
        with pytest.raises(ExportError, match=r"(?s)does not compute what the adapter does.*rounding to .*float"):
            export_merged(tmp_path / "adapter", tmp_path / "out", dtype=dtype)
        words = ("--adapter", tmp_path / "adapter", "--out", tmp_path / "out", "--to", "merged")
        printed = run("export", *words, *(() if dtype is None else ("--dtype", dtype)), ok=False)
        assert "AutoModelForCausalLM.from_pretrained" not in printed
        assert not (tmp_path / "out").exists()
    else:
        certificate = export_merged(tmp_path / "adapter", tmp_path / "out", dtype=dtype).certificate
        assert certificate is not None
        assert certificate.roundings is not None
        assert 0.3 < certificate.roundings < 2.5
        assert certificate.dtype == (dtype or "float32")
        assert f"roundings to {dtype or 'float32'}" in str(certificate)


def test_a_merged_gguf_that_computes_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = save_both(tmp_path)
    exact = gguf_writing._exact
    wrong = lambda tensor, factors, base: exact(tensor, LoraFactors(factors.down, -factors.up), base)  # noqa: E731
    monkeypatch.setattr(gguf_writing, "_exact", wrong)
    with pytest.raises(ExportError, match="does not compute what the adapter does"):
        export_merged_gguf(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", ["peft", "safetensors", "llamacpp"])
@pytest.mark.parametrize("options", [{}, {"rank": 2}, {"dtype": torch.bfloat16}])
def test_a_lora_whose_files_hold_something_else(
    to: Any, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = adapted(), tmp_path / "out"
    export_lora(model, out, to=to)
    before = contents(out)
    # What is written is not what was made: a layer is lost on the way.
    form = LORA_FORMS[to]

    def lossy(lora: Any, *args: Any) -> None:
        factors = {**lora.factors, LAYER: LoraFactors(lora.factors[LAYER].down, -lora.factors[LAYER].up)}
        form.write(dataclasses.replace(lora, factors=factors), *args)

    monkeypatch.setitem(LORA_FORMS, to, dataclasses.replace(form, write=lossy))
    with pytest.raises(ExportError, match="does not compute what the adapter does"):
        export_lora(model, out, to=to, **options)
    assert contents(out) == before


def test_what_was_asked_for_is_expected(tmp_path: Path) -> None:
    model = adapted()
    for number, (options, words) in enumerate(
        [
            ({"rank": 2}, "expected of rank 2 of 14"),
            ({"dtype": torch.bfloat16}, "expected of factors in bfloat16"),
            ({"rank": 3, "dtype": torch.float16}, "expected of rank 3 of 14 and factors in float16"),
            ({}, "roundings to float32"),
        ]
    ):
        report = export_lora(model, tmp_path / str(number), **options)
        assert report.certificate is not None
        assert words in str(report.certificate)
        # Held against what its factors compute.
        assert report.certificate.roundings is not None
        assert report.certificate.roundings < 5


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_differences_that_are_not_finite(value: float, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="not finite"):
        export_lora(adapted(), tmp_path / "out", check=lambda *_: Certificate("x", 1, value, 1.0, 1.0))
    assert not (tmp_path / "out").exists()


def test_outputs_that_are_nan(tmp_path: Path) -> None:
    model = adapted()
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    with pytest.raises(ExportError, match="not finite"):
        export_lora(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Masked(nn.Module):
    """Outputs of which one is masked by minus infinity."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).index_fill(-1, torch.tensor([3]), float("-inf"))


def test_masked_outputs_are_no_difference(tmp_path: Path) -> None:
    model = Masked()
    inject_adapter(model, PeraConfig(2, target_modules=["linear"]))
    randomise_adapter(model)
    report = export_lora(model, tmp_path, to="safetensors", inputs=[torch.randn(4, 8)])
    assert report.certificate is not None
    assert report.certificate.max_difference < 1e-5


@pytest.mark.parametrize("inputs", [[], [{"input_ids": IDS, "attention_mask": torch.zeros_like(IDS)}]])
def test_a_comparison_on_nothing(inputs: list[Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to compare"):
        export_lora(adapted(), tmp_path / "out", inputs=inputs)
    assert not (tmp_path / "out").exists()


def test_a_merge_in_memory_that_changes_the_outputs(caplog: pytest.LogCaptureFixture) -> None:
    model = adapted()
    with caplog.at_level(logging.WARNING, "pera_lightning.export.merged.merge"):
        merge_adapter(model)
    assert not caplog.records
    model = adapted()
    calls = []

    def doubled(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        # Code of somebody's own that treats adapted layers in another way.
        calls.append(type(module).__name__)
        return output if hasattr(model.model.layers[1].mlp.down_proj, "pera_A") else 2 * output

    model.model.layers[1].mlp.register_forward_hook(doubled)
    with caplog.at_level(logging.WARNING, "pera_lightning.export.merged.merge"):
        merge_adapter(model)
    assert "does not compute what the adapted one did" in caplog.text


def test_a_lost_layer_is_seen_in_every_dtype() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model = adapted().to(dtype)
        reference = Reference.of(model, [{"input_ids": IDS}])
        reference.compare(model, "itself").refuse_inexact()
        with torch.no_grad():
            model.get_submodule(LAYER).pera_B.zero_()
        with pytest.raises(ExportError, match="does not compute what the adapter does"):
            reference.compare(model, "damaged").refuse_inexact()
