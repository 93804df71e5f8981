"""Damaged and hostile `adapter_config.json`: each refused at once, with the model as it was."""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pera_lightning import PeraConfig, inject_adapter, load_adapter, save_adapter
from pera_lightning.analysis import inspect_adapter
from pera_lightning.errors import AdapterFileError, ConfigError
from pera_lightning.export import export_lora
from pera_lightning.storage.bounded_json import JsonError, parse_json

ODD: list[Any] = [None, True, -1, 0, 1.5, "1", "", [], {}, [[]], {"rank": []}, 10**60, 1e308, 1e-320, "x" * 2000]


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4), nn.Linear(4, 3))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = make_model()
    config = PeraConfig(2, target_modules=["1", "3"], modules_to_save=["4", "2"], trainable_tokens={"0": [1, 4]})
    inject_adapter(model, config)
    return Path(save_adapter(model, tmp_path / "adapter"))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "adapter_config.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def refuses(folder: Path, words: str | None = None) -> None:
    model = make_model()
    before = copy.deepcopy(model.state_dict())
    start = time.process_time()
    with pytest.raises(AdapterFileError, match=words):
        load_adapter(model, folder)
    assert time.process_time() - start < 2
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)


FIELDS = ["format_version", "config", "layers", "saved_modules", "token_rows", "base_quantization", "base_sample"]
FIELDS += ["base_record", "layer_traits"]
# What these fields may be: older versions wrote no more.
HARMLESS = {("layer_traits", "{}"), ("base_sample", "{}"), ("base_record", "{}")}
# And of layers that the model does not have they may say what they want.
HARMLESS |= {("layer_traits", "{'rank': []}"), ("base_sample", "{'rank': []}")}


@pytest.mark.parametrize("field", FIELDS)
def test_fields_of_odd_types(folder: Path, field: str) -> None:
    original = (folder / "adapter_config.json").read_text()
    for value in ODD:
        (folder / "adapter_config.json").write_text(original)
        if (field, str(value)) not in HARMLESS:
            rewrite(folder, lambda values, value=value: values.update({field: value}))
            refuses(folder)


@pytest.mark.parametrize("option", ["rank", "order", "terms"])
def test_options_that_decide_over_outputs_are_not_guessed(folder: Path, option: str) -> None:
    rewrite(folder, lambda values: values["config"].pop(option))
    refuses(folder, f"the entry '{option}'")


@pytest.mark.parametrize("option", list(PeraConfig().to_dict()))
def test_options_of_odd_types(folder: Path, option: str) -> None:
    original = (folder / "adapter_config.json").read_text()
    wrong = 0
    for value in ODD:
        (folder / "adapter_config.json").write_text(original)
        rewrite(folder, lambda values, value=value: values["config"].update({option: value}))
        # Some are right for some options; then the model computes.
        try:
            PeraConfig.from_dict({option: value})
        except ConfigError:
            refuses(folder)
            wrong += 1
    assert wrong >= 9


@pytest.mark.parametrize("alpha", [1e308, 1e-320, -1, 0, True, "4", 10**60, [4]])
def test_scales_have_bounds(folder: Path, alpha: Any) -> None:
    rewrite(folder, lambda values: values["layers"]["1"].update(alpha=alpha))
    refuses(folder, "alpha is")


@pytest.mark.parametrize("rank", [0, -2, 3, 40_000, 10**9, 10**60, 2.0, True, "2", None])
def test_ranks_are_those_of_the_tensors(folder: Path, rank: Any, tmp_path: Path) -> None:
    rewrite(folder, lambda values: values["layers"]["1"].update(rank=rank))
    refuses(folder, "rank")
    with pytest.raises(AdapterFileError, match="rank"):
        inspect_adapter(folder)
    with pytest.raises(AdapterFileError, match="rank"):
        export_lora(folder, tmp_path / "out")


@pytest.mark.parametrize("order", [3, 9, 250, 10**9, 10**60, 2.0, True])
def test_orders_are_those_of_the_tensors(folder: Path, order: Any) -> None:
    rewrite(folder, lambda values: values["config"].update(order=order))
    refuses(folder, "order")


def test_names(folder: Path) -> None:
    original = (folder / "adapter_config.json").read_text()
    for name in ("", ".", "a..b", "../x", "1._orig_mod", "x" * 1_000_000, "\ud800", "5", "4", "4.x"):
        (folder / "adapter_config.json").write_text(original)
        rewrite(folder, lambda values, name=name: values["layers"].update({name: values["layers"]["1"]}))
        refuses(folder)


def one_field(text: str) -> bytes:
    return b'{"peft_type": "PERA", "format_version": 1, "x": ' + text.encode() + b"}"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "Expecting value"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"a": NaN}', "finite"),
        (b'{"a": [-Infinity]}', "finite"),
        (b'{"a": 1e999}', "finite"),
        (b'{"a": ' + b"1" * 5000 + b"}", "5,000 digits"),
        (b'{"a": "\\ud800"}', "half a character"),
        (b'{"\\udc00": 1}', "half a character"),
        (b"\xef\xbb\xbf{}", "BOM"),
        ('{"a": 1}'.encode("utf-16"), "decode"),
        (b'{"a": "\xff"}', "decode"),
        (b"[" * 100_000, "nested"),
        (b"[" * 100 + b"]" * 100, "nested"),
        (b'{"a":' * 100_000, "nested"),
        (b"[" + b"0," * 1_000_001 + b"0]", "1,000,000 values"),
        (b'"' + b"x" * (16 << 20) + b'"', "bytes"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_json_has_bounds(content: bytes, words: str, folder: Path) -> None:
    with pytest.raises(JsonError, match=words):
        parse_json(content)
    (folder / "adapter_config.json").write_bytes(content)
    refuses(folder, words)


def test_json_within_the_bounds() -> None:
    values = {"a": [1, -2.5, None, True, "ä😀"], "b": {"c": 10**30}}
    assert parse_json(json.dumps(values).encode()) == values
    assert parse_json(json.dumps(values, ensure_ascii=False).encode()) == values


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_what_is_no_file_is_not_opened(folder: Path, file: str) -> None:
    path = folder / file
    path.unlink()
    path.mkdir()
    refuses(folder)
    path.rmdir()
    # Windows has neither.
    if hasattr(os, "mkfifo"):
        os.mkfifo(path)
        refuses(folder, "named pipe")
        path.unlink()
        path.symlink_to("/dev/zero")
        refuses(folder, "a device")


@pytest.mark.parametrize(
    "options",
    [
        {"order": 9},
        {"order": 10**9},
        {"rank": 100_000},
        {"rank": 10**5000},
        {"alpha": 1e10},
        {"alpha": 1e-320},
        {"coefficient_scale": 1e10},
        {"target_modules": ["x" * 2000]},
        {"trainable_tokens": [2**40]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_bounds_hold_for_what_a_user_gives(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        PeraConfig(**options)


@pytest.mark.parametrize(("rank", "order"), [(64, 3), (100, 2), (4096, 2), (20, 8), (65_536, 8)])
def test_expansions_beyond_the_layer_are_refused_before_anything_is_built(rank: int, order: int) -> None:
    model = make_model()
    modules, start = list(model.modules()), time.process_time()
    with pytest.raises(ConfigError, match="more columns"):
        inject_adapter(model, PeraConfig(rank, order, target_modules=["1", "3"]))
    assert time.process_time() - start < 0.5
    assert list(model.modules()) == modules


def test_the_largest_expansion() -> None:
    # 4,095 = 2 * 89 + 89 * 88 / 2 + ...: rank 89 has K = 4,094, and rank 90 has 4,185.
    model = nn.Sequential(nn.Linear(6, 8))
    inject_adapter(model, PeraConfig(89))
    assert model[0].pera_h.numel() + 89 == 4094
    with pytest.raises(ConfigError, match="more columns"):
        inject_adapter(nn.Sequential(nn.Linear(6, 8)), PeraConfig(90))
