"""The table of export forms is all that there is to a form: a new one is an entry."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch.optim import SGD

from pera_lightning import export_lora, save_adapter
from pera_lightning.cli.export import export
from pera_lightning.cli.options.signatures import parameters
from pera_lightning.cli.push import push
from pera_lightning.errors import ConfigError
from pera_lightning.export.forms import LORA_FORMS, MODEL_FORMS, ExportForm, LoraForm, lora_form
from pera_lightning.export.lora.lora_factors import LoraFactors, StoredLora
from pera_lightning.export.lora.plain_lora import PlainLora
from tests.support.exports import adapted
from tests.support.models import token_ids


def write_npz(lora: PlainLora, folder: Path, _: Any) -> None:
    sides = LoraFactors._fields
    arrays = {f"{name}:{side}": getattr(one, side).numpy() for name, one in lora.factors.items() for side in sides}
    np.savez(folder / "lora.npz", **arrays)


def read_npz(folder: Path, _: Any, layers: Iterable[str]) -> StoredLora:
    with np.load(folder / "lora.npz") as arrays:
        sides = {name: [torch.from_numpy(arrays[f"{name}:{side}"]) for side in LoraFactors._fields] for name in layers}
    return StoredLora({name: LoraFactors(*both) for name, both in sides.items()}, {})


@pytest.fixture
def npz(monkeypatch: pytest.MonkeyPatch) -> None:
    form = LoraForm("NumPy", ("lora.npz",), write_npz, read_npz, lambda folder, *_: f"np.load({str(folder)!r})")
    monkeypatch.setitem(LORA_FORMS, "npz", form)


def trained() -> torch.nn.Module:
    model = adapted()
    optimizer = SGD([value for value in model.parameters() if value.requires_grad], 0.1)
    ids = token_ids()
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    return model


@pytest.mark.usefixtures("npz")
def test_a_new_form_is_an_entry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = trained()
    report = export_lora(model, tmp_path / "out", to="npz")  # type: ignore[arg-type]
    assert report.exact
    # Read back by the entry's own reader, and compared with the adapter.
    assert report.certificate is not None
    assert report.certificate.roundings < report.certificate.limit
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"lora.npz", "export_report.json"}
    # An earlier export of the form is replaced.
    export_lora(model, tmp_path / "out", to="npz")  # type: ignore[arg-type]
    save_adapter(model, tmp_path / "adapter")
    export(str(tmp_path / "adapter"), str(tmp_path / "tool"), "npz", check=False)  # type: ignore[arg-type]
    assert capsys.readouterr().out.endswith(f"np.load({str(tmp_path / 'tool')!r})\n")
    assert {path.name for path in (tmp_path / "tool").iterdir()} == {"lora.npz", "export_report.json"}


def test_an_unknown_name_writes_nothing(tmp_path: Path) -> None:
    model = adapted()
    for name in ("npz", "merged"):
        with pytest.raises(ConfigError, match=f"(?s)no such target of an export.*{name!r}.*'peft' or 'vllm'"):
            export_lora(model, tmp_path / "out", to=name)  # type: ignore[arg-type]
    save_adapter(model, tmp_path / "adapter")
    with pytest.raises(ConfigError, match=r"(?s)npz.*one of peft, vllm, llamacpp, safetensors, merged, gguf"):
        export(str(tmp_path / "adapter"), str(tmp_path / "out"), "npz", check=False)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_every_form_has_a_name_that_help_lists() -> None:
    assert set(get_args(ExportForm)) == {*LORA_FORMS, *MODEL_FORMS}
    option = parameters("pera_lightning.cli.export", "export")["to"]
    assert all(repr(name) in option.annotation and f'"{name}"' in option.help for name in get_args(ExportForm))


@pytest.mark.parametrize("name", [name for name, form in LORA_FORMS.items() if not form.needs_config])
def test_what_a_form_says_it_writes_is_uploaded(name: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = adapted(target_modules=["q_proj"])
    save_adapter(model, tmp_path / "adapter")
    export_lora(tmp_path / "adapter", tmp_path / "out", to=name)
    push(str(tmp_path / "out"), "me/mine", dry_run=True)
    printed = capsys.readouterr().out
    assert all(f"{file}  " in printed for file in lora_form(name).files)
