"""DeepSpeed ZeRO-2 in two processes on the CPU; GPUs are what Lightning's strategy is for, and it has not run on any.

Needs deepspeed, whose operators need not be compiled; without it the tests that start processes are skipped:

    pip install hjson py-cpuinfo msgpack ninja einops setuptools wheel
    DS_BUILD_OPS=0 pip install --no-deps --no-build-isolation deepspeed==0.19.8
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pera_lightning import PeraConfig, adapter_state_dict, inject_adapter, load_adapter
from pera_lightning.checkpoint import manifest_of
from pera_lightning.checkpoint.training.consolidation import consolidate
from pera_lightning.checkpoint.training.training_checkpoint import read_checkpoint
from pera_lightning.errors import CheckpointError
from tests.callback.strategies.test_model_parallel import assert_like_one_process, assert_same
from tests.conftest import NO_DEEPSPEED, ROOT
from tests.support.models import randomise_adapter, tiny_llama
from tests.support.pretrained import save_pretrained
from tests.support.sharded import without_parallelism

Found = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("deepspeed") is None:
        pytest.skip(NO_DEEPSPEED)
    folder = tmp_path_factory.mktemp("zero2")
    torch.manual_seed(0)
    save_pretrained(folder / "model")
    # Answers of unequal lengths.
    rows = [
        {"instruction": f"say {letter}", "input": "", "output": (1 + number * number % 7) * letter}
        for number, letter in enumerate("abcdefghijkl")
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    environment = {name: value for name, value in os.environ.items() if name not in ("MASTER_PORT", "LOCAL_RANK")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.zero2", str(folder)],
        cwd=ROOT,
        env={**environment, "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return folder


@pytest.fixture(scope="module")
def language_models(folder: Path) -> list[Found]:
    return [torch.load(folder / f"language_model_part-{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def own_modules(folder: Path) -> list[Found]:
    return [torch.load(folder / f"own_module_part-{rank}.pt", weights_only=True) for rank in range(2)]


def test_equals_one_process(language_models: list[Found], folder: Path, tmp_path: Path) -> None:
    assert_like_one_process(language_models, without_parallelism(tmp_path, folder / "model", folder / "rows.jsonl"))
    assert_same(*language_models)


def test_own_modules_are_equal_in_both_processes(own_modules: list[Found]) -> None:
    for name in ("whole", "within", "between", "pairs", "pairs resumed", "afterwards"):
        assert_same(own_modules[0][name], own_modules[1][name])
    first = (0, 0)
    assert own_modules[0]["whole"]["losses"][first] != own_modules[1]["whole"]["losses"][first]


def test_no_file_of_a_checkpoint_holds_the_base(language_models: list[Found], folder: Path) -> None:
    checkpoint = folder / "zero2/checkpoints/epoch=1.ckpt"
    held = read_checkpoint(checkpoint)
    assert held.distributed
    assert held.shapes.keys() == language_models[0]["adapter"].keys()
    for key, value in held.tensors().items():
        assert torch.equal(value, language_models[0]["adapter"][key])
    written = [path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()]
    assert len(written) >= 3
    assert any(_bytes(held.tensors()["model.model.layers.0.mlp.up_proj.pera_A"]) in data for data in written)
    base = {key: value for key, value in load_file(folder / "model/model.safetensors").items() if value.std() > 0}
    assert len(base) > 10
    assert not [key for key, value in base.items() if any(_bytes(value) in data for data in written)]


def _bytes(value: torch.Tensor) -> bytes:
    """Some of a tensor's bytes: enough to be found by."""
    return bytes(value.flatten()[:16].numpy().tobytes())


def test_the_folder_is_of_the_best_checkpoint(own_modules: list[Found], folder: Path) -> None:
    stored = load_file(folder / "whole/adapter/adapter_model.safetensors")
    best, last = (read_checkpoint(folder / f"whole/epoch={epoch}.ckpt").tensors() for epoch in (0, 1))
    assert stored.keys() == best.keys()
    for key, value in stored.items():
        assert torch.equal(value, best[key])
        assert not torch.equal(value, last[key])
        assert value.any()


def test_the_folder_loads_into_a_plain_model(language_models: list[Found], folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    load_adapter(model, folder / "zero2/adapter")
    trained = read_checkpoint(language_models[0]["best"]).tensors()
    for key, value in adapter_state_dict(model).items():
        assert torch.equal(value, trained[f"model.{key}"])
        assert value.any()


@pytest.mark.parametrize(("name", "of"), [("within", "whole"), ("between", "whole"), ("pairs resumed", "pairs")])
def test_resumed_is_the_same_bit_by_bit(own_modules: list[Found], name: str, of: str) -> None:
    """From within an epoch, between two, and within one when gradients are accumulated."""
    for found in own_modules:
        whole, resumed = found[of], found[name]
        assert resumed["losses"].keys() == {step for step in whole["losses"] if step >= min(resumed["losses"])}
        assert min(resumed["losses"]) == {"within": (0, 3), "between": (1, 0), "pairs resumed": (0, 4)}[name]
        assert all(torch.equal(whole["losses"][step], loss) for step, loss in resumed["losses"].items())
        assert_same(whole, resumed)


def test_warns_of_accumulated_gradients_that_are_lost(own_modules: list[Found]) -> None:
    lost = "DeepSpeed's gradients are in no checkpoint"
    assert any(lost in warning for warning in own_modules[0]["cut pair"]["warnings"])
    assert not any(lost in warning for warning in own_modules[0]["pairs resumed"]["warnings"])


def test_validates_what_the_checkpoint_holds(own_modules: list[Found], folder: Path) -> None:
    for found in own_modules:
        assert_same(found["validated"], found["whole"])
    # Lightning had taken all hooks off that module.
    assert read_checkpoint(folder / "afterwards/epoch=1.ckpt").shapes.keys() == found["whole"]["adapter"].keys()


REFUSALS = {
    "rank": "the rank is 2 there and 3 here",
    "rank in validation": "the rank is 2 there and 3 here",
    "targets": "have no place in this model, e.g. 'net.2.",
    "start": "polynomial_start_step=3",
    "optimizer": "4 forgotten, e.g. 'net.2.pera_A'",
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refused_in_every_process_at_once(own_modules: list[Found], name: str) -> None:
    messages = [found["refusals"][name] for found in own_modules]
    assert messages[0] == messages[1]
    assert REFUSALS[name] in messages[0]


def test_consolidate(language_models: list[Found], folder: Path, tmp_path: Path) -> None:
    consolidate(folder / "zero2/checkpoints/epoch=1.ckpt", tmp_path / "adapter")
    for key, value in load_file(tmp_path / "adapter/adapter_model.safetensors").items():
        assert torch.equal(value, language_models[0]["adapter"][f"model.{key}"])


def test_consolidates_a_folder_as_deepspeed_writes_it(tmp_path: Path) -> None:
    model = tiny_llama()
    inject_adapter(model, PeraConfig(2))
    randomise_adapter(model)
    adapter = adapter_state_dict(model)
    file = tmp_path / "epoch=0.ckpt/checkpoint/mp_rank_00_model_states.pt"
    file.parent.mkdir(parents=True)
    states = {"module": {f"model.{key}": value for key, value in adapter.items()}, "optimizer": None}
    torch.save({**states, "callbacks": {"PeraCallback": {"adapter": manifest_of(model).to_dict()}}}, file)
    consolidate(tmp_path / "epoch=0.ckpt", tmp_path / "adapter")
    stored = load_file(tmp_path / "adapter/adapter_model.safetensors")
    assert stored.keys() == adapter.keys()
    assert all(torch.equal(stored[key], value) for key, value in adapter.items())
    file.unlink()
    with pytest.raises(CheckpointError, match="mp_rank_00_model_states"):
        consolidate(tmp_path / "epoch=0.ckpt", tmp_path / "adapter")
