"""Damage and files of two saves are refused, by checksums; a reader beside a writer gets one save."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pera_lightning import AdapterSet, PeraConfig, adapter_state_dict, inject_adapter, load_adapter, save_adapter
from pera_lightning.checkpoint import adapter_folder
from pera_lightning.checkpoint.adapter_folder import read_adapter
from pera_lightning.checkpoint.checksums import of_weights
from pera_lightning.errors import AdapterFileError, FolderError, PeraError
from pera_lightning.injection import adapted_layers
from pera_lightning.storage import journal, whole_folder
from pera_lightning.storage.folder_kind import COMMIT, FolderKind
from pera_lightning.storage.recognition.adapter_kind import WEIGHTS_FILE
from tests.support.earlier_adapters import forget_checksums
from tests.support.models import randomise_adapter

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def base() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def adapted(seed: int = 1, alpha: float = 4.0) -> nn.Module:
    model = base()
    inject_adapter(model, PeraConfig(2, alpha=alpha, target_modules=["0", "2"]))
    torch.manual_seed(seed)
    randomise_adapter(model)
    return model


def x() -> Tensor:
    torch.manual_seed(5)
    return torch.randn(4, 6)


def loads(folder: Path) -> Tensor:
    model = base()
    load_adapter(model, folder)
    return model.eval()(x())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_adapter(adapted(), tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_no_flipped_bit_changes_an_output(name: str, folder: Path) -> None:
    expected, path = loads(folder), folder / name
    content, numbers = path.read_bytes(), random.Random(name)
    refused = 0
    for place in numbers.sample(range(8 * len(content)), 60):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            found = loads(folder)
        except PeraError:
            refused += 1
        else:
            assert torch.equal(found, expected), place
    # Of the config much tells of the base, and is compared with that.
    assert refused > (50 if name == WEIGHTS else 10)


@pytest.mark.parametrize("changes", [{"alpha": 5.0}, {"order": 2, "use_rslora": True}, {"dropout": 0.5}])
def test_an_option_that_was_changed(changes: dict[str, Any], folder: Path) -> None:
    expected, values = loads(folder), json.loads((folder / CONFIG).read_text())
    values["config"] |= changes
    (folder / CONFIG).write_text(json.dumps(values))
    for read in (loads, read_adapter, partial(AdapterSet(base()).load, "name")):
        with pytest.raises(AdapterFileError, match=r"(?s)config is not as it was written.*take its entry 'checksums'"):
            read(folder)
    loaded = loads(forget_checksums(folder))
    assert torch.equal(loaded, expected) == ("use_rslora" not in changes)


@pytest.mark.parametrize("checksums", [3, [], {}, {"config": "a" * 1000, "weights": None}])
def test_checksums_that_are_none(checksums: Any, folder: Path) -> None:
    values = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**values, "checksums": checksums}))
    with pytest.raises(AdapterFileError, match="not as it was written"):
        loads(folder)


def test_files_of_two_saves(folder: Path, tmp_path: Path) -> None:
    save_adapter(adapted(seed=2), tmp_path / "other")
    (tmp_path / "other" / WEIGHTS).replace(folder / WEIGHTS)
    model = base()
    before = list(model)
    with pytest.raises(AdapterFileError, match="weights are not those that its config was written with"):
        load_adapter(model, folder)
    assert list(model) == before
    present = adapted(seed=3)
    values = {name: value.clone() for name, value in adapter_state_dict(present).items()}
    with pytest.raises(AdapterFileError, match="weights are not those"):
        load_adapter(present, folder)
    assert all(torch.equal(value, values[name]) for name, value in adapter_state_dict(present).items())
    with pytest.raises(AdapterFileError, match="weights are not those"):
        read_adapter(folder)


def test_what_is_known_of_the_base_may_be_changed_and_earlier_versions_wrote_no_checksums(folder: Path) -> None:
    expected, values = loads(folder), json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**values, "base_model_name_or_path": "moved/there", "versions": {}}))
    assert torch.equal(loads(folder), expected)
    assert torch.equal(loads(forget_checksums(folder)), expected)


def test_checksums_tell_names_dtypes_shapes_and_values_apart() -> None:
    value = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    others = [
        {"b": value}, {"a": value.reshape(3, 2)}, {"a": value.view(torch.int32)}, {"a": value + 1e-6}, {},
        {"a": value[:1], "b": value[1:]},
    ]  # fmt: skip
    found = [of_weights(tensors) for tensors in [{"a": value}, *others]]
    assert len(set(found)) == len(found)
    assert of_weights({"b": value, "a": value.T.contiguous().T}) == of_weights({"a": value, "b": value})
    assert of_weights({"a": torch.tensor(1.0, dtype=torch.bfloat16), "b": torch.empty(0, 2)})


def test_a_reader_beside_a_constant_writer(tmp_path: Path) -> None:
    """A thread stands for the other process: what counts are the files."""
    models = {alpha: adapted(seed=int(alpha), alpha=alpha) for alpha in (1.0, 2.0)}
    written = {alpha: of_weights(adapter_state_dict(model)) for alpha, model in models.items()}
    save_adapter(models[1.0], tmp_path / "adapter")
    stop, problems = threading.Event(), []

    def write() -> None:
        try:
            while not stop.is_set():
                for model in models.values():
                    save_adapter(model, tmp_path / "adapter")
        except BaseException as error:
            problems.append(error)
            raise

    writer = threading.Thread(target=write)
    writer.start()
    try:
        found = [read_adapter(tmp_path / "adapter") for _ in range(60)]
    finally:
        stop.set()
        writer.join()
    assert not problems
    assert all(written[manifest.config.alpha or 0] == of_weights(tensors) for manifest, tensors in found)
    assert len({manifest.config.alpha for manifest, _ in found}) == 2


def test_a_reader_beside_a_writer_that_has_moved_one_of_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had looked for files on their way before they were."""
    save_adapter(adapted(seed=1, alpha=1.0), tmp_path / "adapter")
    (tmp_path / "adapter/own").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(whole_folder, "_finish", lambda *_: None)
        save_adapter(adapted(seed=2, alpha=2.0), tmp_path / "adapter")
    settled = []

    def settle(folder: Path, kind: FolderKind) -> bool:
        settled.append(folder)
        if len(settled) > 1:
            return journal.settle(folder, kind)
        (folder / COMMIT / WEIGHTS_FILE).replace(folder / WEIGHTS_FILE)
        return False

    monkeypatch.setattr(adapter_folder, "settle", settle)
    manifest, tensors = read_adapter(tmp_path / "adapter")
    assert manifest.config.alpha == 2.0
    assert of_weights(tensors) == of_weights(adapter_state_dict(adapted(seed=2, alpha=2.0)))


def readme(folder: Path) -> None:
    (folder / "README.md").write_text("mine")


def base_model(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(b"weights")


def lora(folder: Path) -> None:
    (folder / CONFIG).write_text('{"peft_type": "LORA"}')
    (folder / WEIGHTS).write_bytes(b"weights")


def export(folder: Path) -> None:
    lora(folder)
    (folder / "export_report.json").write_text('{"to": "peft"}')


@pytest.mark.parametrize("fill", [readme, base_model, lora, export])
def test_folders_of_others_are_not_written_to(fill: Callable[[Path], None], tmp_path: Path) -> None:
    fill(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(FolderError, match="not ours"):
        save_adapter(adapted(), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    save_adapter(adapted(), tmp_path, overwrite=True)
    assert torch.equal(loads(tmp_path), adapted()(x()))
    ours = {"README.md", WEIGHTS, CONFIG}
    assert {path.name for path in tmp_path.iterdir()} == before.keys() | ours
    assert all((tmp_path / name).read_bytes() == before[name] for name in before.keys() - ours)


@pytest.mark.parametrize("file", ["", "model.gguf"])
def test_the_folder_of_the_base_is_never_written_to(file: str, folder: Path) -> None:
    if file:
        (folder / file).touch()
    with pytest.raises(FolderError, match="folder of its base model"):
        save_adapter(adapted(), folder, base_model=str(folder / file), overwrite=True)


def test_beside_the_checkpoints_of_a_run(tmp_path: Path) -> None:
    for name in ("last.ckpt", "checkpoints", "lightning_logs", "hparams.yaml"):
        (tmp_path / name).mkdir()
    save_adapter(adapted(), tmp_path)
    save_adapter(adapted(seed=2), tmp_path)
    assert torch.equal(loads(tmp_path), adapted(seed=2)(x()))
    assert len(list(adapted_layers(adapted()))) == 2
