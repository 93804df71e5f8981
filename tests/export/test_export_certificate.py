"""What an export says about itself: the same outputs, measured on the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pera_lightning import export_lora
from pera_lightning.errors import AdapterFileError
from pera_lightning.export.certificate import Reference
from pera_lightning.export.lora.lora_applied import lora_applied
from pera_lightning.export.lora.peft_format import read_peft
from pera_lightning.injection import adapted_layers
from tests.support.exports import adapted, contents
from tests.support.models import tiny_bert_classifier, token_ids

# PEFT looks at an attribute of transformers that is about to be renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def test_the_certificate_tells_good_from_bad(tmp_path: Path) -> None:
    model = adapted()
    good, bad = export_lora(model, tmp_path / "good").certificate, export_lora(model, tmp_path / "bad", 1).certificate
    assert good is not None
    assert bad is not None
    assert good.positions == bad.positions == 64
    assert good.max_difference < 1e-5 < 0.1 < good.max_change
    assert bad.max_difference > 0.01
    assert good.agreement == 1 > bad.agreement
    stored = json.loads((tmp_path / "bad/export_report.json").read_text())
    assert stored["certificate"]["max_difference"] == bad.max_difference
    assert stored["layers"].keys() == {name for name, _ in adapted_layers(model)}


def test_the_certificate_is_of_the_files(tmp_path: Path) -> None:
    model, ids = adapted(), token_ids()
    export_lora(model, tmp_path)
    reference = Reference.of(model, [{"input_ids": ids}])
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    key = next(key for key in tensors if "1.mlp.down_proj.lora_B" in key)
    save_file({**tensors, key: tensors[key].roll(1, 0)}, file)
    with lora_applied(model, read_peft(tmp_path)):
        damaged = reference.compare(model, "damaged")
    assert damaged.max_difference > 1e-3
    # And the adapter is back.
    assert reference.compare(model, "itself").max_difference == 0


def test_the_certificate_reads_modules_saved_whole_from_the_files(tmp_path: Path) -> None:
    model, ids = adapted(modules_to_save=["model.norm"]), token_ids()
    with torch.no_grad():
        model.model.norm.weight.normal_()
    reference = Reference.of(model, [{"input_ids": ids}])
    report = export_lora(model, tmp_path, dtype=torch.bfloat16)
    assert 0 < report.saved["model.norm.weight"] < 2**-8
    assert "1 tensors saved whole, rounded by at most" in str(report)
    stored = read_peft(tmp_path)
    stored.saved["model.norm.weight"].zero_()
    with lora_applied(model, stored):
        assert reference.compare(model, "damaged").max_difference > 0.1
    assert reference.compare(model, "itself").max_difference == 0
    del stored.saved["model.norm.weight"]
    with (
        pytest.raises(AdapterFileError, match=r"(?s)not hold all of the adapter.*model\.norm\.weight"),
        lora_applied(model, stored),
    ):
        pass


def test_padding_takes_no_part(tmp_path: Path) -> None:
    model, ids = adapted(), token_ids()
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    report = export_lora(model, tmp_path, inputs=[{"input_ids": ids, "attention_mask": mask}])
    assert report.certificate is not None
    assert report.certificate.positions == int(mask.sum())


def test_modules_saved_whole_keep_their_trained_values_in_the_comparison(tmp_path: Path) -> None:
    model = adapted(tiny_bert_classifier, modules_to_save=["classifier"])
    with torch.no_grad():
        model.classifier.weight.normal_()
    report = export_lora(model, tmp_path, inputs=[{"input_ids": token_ids()}])
    assert report.certificate is not None
    assert report.certificate.max_difference < 1e-5


def test_a_comparison_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def check(*_: Any) -> Any:
        raise RuntimeError("out of memory")

    model = adapted()
    export_lora(model, tmp_path / "out", 3)
    before = contents(tmp_path / "out")
    for name in ("out", "new"):
        with pytest.raises(RuntimeError, match="out of memory"):
            export_lora(model, tmp_path / name, check=check)
    assert contents(tmp_path / "out") == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
