"""FSDP1 in two processes on the CPU; GPUs are what Lightning's strategy is for, and there is one test for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pera_lightning import PeraCallback, adapter_state_dict, load_adapter
from pera_lightning.callback.strategies.fsdp1 import _average
from pera_lightning.checkpoint.training.consolidation import consolidate
from pera_lightning.checkpoint.training.training_checkpoint import read_checkpoint
from tests.callback.strategies.test_model_parallel import CLOSE, assert_like_one_process, assert_same
from tests.conftest import NO_GPU
from tests.support.models import Regressor
from tests.support.pretrained import save_pretrained
from tests.support.processes import run_script
from tests.support.sharded import without_parallelism
from tests.support.synchronisation import NoWaiting
from tests.support.trainers import cpu_trainer

Found = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fsdp1")
    torch.manual_seed(0)
    save_pretrained(folder / "model")
    rows = [{"instruction": f"say {letter}", "input": "", "output": 3 * letter} for letter in "abcdefghijkl"]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run_script("tests.support.fsdp", folder, processes=2)
    return folder


@pytest.fixture(scope="module")
def language_models(folder: Path) -> list[Found]:
    return [torch.load(folder / f"language_model_part-{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def own_modules(folder: Path) -> list[Found]:
    return [torch.load(folder / f"own_module_part-{rank}.pt", weights_only=True) for rank in range(2)]


def assert_same_run(left: Found, right: Found) -> None:
    """Bit by bit, in the steps that both have made."""
    later = left["losses"].keys() & right["losses"].keys()
    assert later
    assert all(torch.equal(left["losses"][step], right["losses"][step]) for step in later)
    assert_same(left, right)


@pytest.mark.parametrize(("name", "options"), [("fsdp", {}), ("tokens", {"trainable_tokens": [5, 6, 30]})])
def test_equals_one_process(
    language_models: list[Found], folder: Path, tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    expected = without_parallelism(tmp_path, folder / "model", folder / "rows.jsonl", **options)
    ranks = [found[name] for found in language_models]
    assert_like_one_process(ranks, expected)
    assert_same(*ranks)


def test_the_folder_is_that_of_one_process(language_models: list[Found], folder: Path, tmp_path: Path) -> None:
    without_parallelism(tmp_path, folder / "model", folder / "rows.jsonl")
    ours, theirs = (
        json.loads((where / "adapter/adapter_config.json").read_text()) for where in (folder / "fsdp", tmp_path)
    )
    # The weights differ in their last bits.
    assert ours.pop("checksums")["config"] == theirs.pop("checksums")["config"]
    assert ours == theirs
    assert ours["base_sample"]


def test_the_base_is_sharded_and_the_adapter_is_not(language_models: list[Found], folder: Path) -> None:
    base = sum(value.nbytes for value in load_file(folder / "model/model.safetensors").values())
    for found in language_models:
        assert found["wrapped"] == ["PeraCausalLM", "LlamaDecoderLayer", "LlamaDecoderLayer"]
        adapter = sum(value.nbytes for value in found["fsdp"]["adapter"].values())
        # torch pads a flat parameter to what the processes can share.
        assert 0 <= found["fsdp"]["own_bytes"] - adapter - base / 2 < 100


def test_a_base_in_bfloat16_computes_as_under_ddp(language_models: list[Found]) -> None:
    """With checkpointed activations."""
    for found in language_models:
        assert_same_run(found["half"], found["half ddp"])
        assert found["half"]["own_bytes"] < found["half ddp"]["own_bytes"]


def test_own_module_is_trained_as_under_ddp(own_modules: list[Found]) -> None:
    for found in own_modules:
        assert found["whole"]["losses"].keys() == found["ddp"]["losses"].keys()
        for name in ("whole", "afterwards"):
            assert_same_run(found[name], found["ddp"])
        assert_same(found["whole"], own_modules[0]["whole"])
    first = (0, 0)
    assert own_modules[0]["whole"]["losses"][first] != own_modules[1]["whole"]["losses"][first]


def test_manual_optimization_is_that_of_ddp(own_modules: list[Found]) -> None:
    for found in own_modules:
        assert_same(found["by hand"]["fsdp"], own_modules[0]["by hand"]["fsdp"])
        for name, value in found["by hand"]["fsdp"]["adapter"].items():
            # Gradients of both batches are added up before or after the mean is taken.
            torch.testing.assert_close(value, found["by hand"]["ddp"]["adapter"][name], **CLOSE)


def test_layers_that_not_all_processes_use(own_modules: list[Found]) -> None:
    """And the statistics of a batch norm that is trained whole."""
    for found in own_modules:
        uneven = found["uneven"]
        assert_same(uneven, own_modules[0]["uneven"])
        assert uneven["adapter"]["extra.pera_B"].any()
        assert uneven["adapter"]["attention.out_proj.pera_B"].any()
        # Weight decay would have moved it.
        assert torch.equal(uneven["adapter"]["never.pera_A"], uneven["start"])
        assert uneven["adapter"]["norm.running_mean"].any()


@pytest.mark.parametrize("name", ["within", "between", "ddp goes on", "from ddp"])
def test_resumed_is_the_same_bit_by_bit(own_modules: list[Found], name: str) -> None:
    """From within an accumulation, between two epochs, under another strategy, and from a checkpoint of that."""
    for found in own_modules:
        assert min(found[name]["losses"]) == ((1, 0) if name == "between" else (0, 3))
        assert_same_run(found[name], found["whole"])


def test_resumed_language_model_is_the_same_bit_by_bit(language_models: list[Found]) -> None:
    for found in language_models:
        assert min(found["fsdp resumed"]["losses"]) == (1, 0)
        assert_same_run(found["fsdp resumed"], found["fsdp"])


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_one_process_goes_on(language_models: list[Found], folder: Path, tmp_path: Path) -> None:
    checkpoint = folder / "fsdp/checkpoints/epoch=0.ckpt"
    with pytest.warns(UserWarning, match="written by 2 processes and training goes on in 1"):
        one = without_parallelism(tmp_path, folder / "model", folder / "rows.jsonl", ckpt_path=checkpoint)
    assert_like_one_process([found["fsdp resumed"] for found in language_models], one)


def test_checkpoints_hold_the_adapter_alone(
    language_models: list[Found], own_modules: list[Found], folder: Path
) -> None:
    for path, expected in (
        ("fsdp/checkpoints/epoch=1.ckpt", language_models[0]["fsdp"]),
        ("whole/epoch=1.ckpt", own_modules[0]["whole"]),
        ("one module/after.ckpt", own_modules[0]["one module"]["fitted"]),
    ):
        held = read_checkpoint(folder / path)
        assert not held.distributed
        assert_same({"adapter": held.tensors()}, expected)


def test_the_folder_is_of_the_best_checkpoint_and_loads_into_a_plain_model(
    language_models: list[Found], folder: Path
) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    load_adapter(model, folder / "fsdp/adapter")
    best = read_checkpoint(language_models[0]["fsdp"]["best"]).tensors()
    for key, value in adapter_state_dict(model).items():
        assert torch.equal(value, best[f"model.{key}"])
        assert value.any()


def test_consolidate(language_models: list[Found], folder: Path, tmp_path: Path) -> None:
    consolidate(folder / "fsdp/checkpoints/epoch=1.ckpt", tmp_path / "adapter")
    for key, value in load_file(tmp_path / "adapter/adapter_model.safetensors").items():
        assert torch.equal(value, language_models[0]["fsdp"]["adapter"][f"model.{key}"])


def test_validates_what_the_checkpoint_holds(own_modules: list[Found]) -> None:
    for found in own_modules:
        assert_same(found["validated"], found["whole"])


def test_one_module_runs_again(own_modules: list[Found], folder: Path) -> None:
    best = {"adapter": read_checkpoint(folder / "whole/epoch=0.ckpt").tensors()}
    for rank, found in enumerate(own_modules):
        runs = found["one module"]
        assert_same(runs["fitted"], found["whole"])
        assert_same(runs["best"], best)
        assert (2, 0) in runs["fitted on"]["losses"]
        assert_same(runs["fitted on"], own_modules[1 - rank]["one module"]["fitted on"])
        assert "under DDPStrategy" in runs["refused"]
        assert "load_adapter(model, folder)" in runs["merged"]
    saved = load_file(folder / "one module/saved/adapter_model.safetensors")
    assert_same({"adapter": saved}, own_modules[0]["whole"])


REFUSALS = {
    "rank": "the rank of 'net.0' is 2 there and 3 here",
    "rank in validation": "is 2 there and 3 here",
    "targets": "layer 'net.2' is adapted there only",
    "folder": "This is no checkpoint",
    "policy": "wraps 2 adapted layers, e.g. 'net.0'",
    "wrapped": "FSDP1 has taken the shapes",
    "quantized": "over a base in nf4",
    "meta": "parameters on the meta device",
    "averaging": "StochasticWeightAveraging under OnCPU",
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refused_in_every_process_at_once(own_modules: list[Found], name: str) -> None:
    messages = [found["refusals"][name] for found in own_modules]
    assert messages[0] == messages[1]
    assert REFUSALS[name] in messages[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_GPU)
@pytest.mark.filterwarnings("ignore")
def test_lightnings_own_strategy(tmp_path: Path) -> None:
    """One process alone: what is on which device, and that a checkpoint goes on."""

    def fit(epochs: int, **options: Any) -> Regressor:
        torch.manual_seed(0)
        module = Regressor()
        callback = PeraCallback(2, modules_to_save=["net.3"], adapter_dir=str(tmp_path / "adapter"))
        settings = {"accelerator": "gpu", "strategy": "fsdp", "gradient_clip_val": 0.5, "max_epochs": epochs}
        trainer = cpu_trainer(tmp_path, callback, **settings)
        trainer.fit(module, **options)
        trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return module

    fit(1)
    whole, resumed = fit(2), fit(2, ckpt_path=tmp_path / "1.ckpt")
    expected = adapter_state_dict(resumed)
    assert all(value.is_cuda for value in expected.values())
    for key, value in adapter_state_dict(whole).items():
        assert torch.equal(value, expected[key])
    plain = Regressor()
    load_adapter(plain, tmp_path / "adapter")
    assert_same({"adapter": read_checkpoint(tmp_path / "2.ckpt").tensors()}, {"adapter": adapter_state_dict(plain)})


def test_averaging_waits_only_where_a_gradient_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    # As if another process had the same gradients.
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.mul_(2))
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in (3, (2, 2), 1)]
    gradients = [torch.randn_like(value) for value in parameters]
    for value, gradient in zip(parameters, gradients, strict=True):
        value.grad = gradient.clone()
    with NoWaiting():
        _average(parameters, 2)
    assert all(torch.equal(value.grad, gradient) for value, gradient in zip(parameters, gradients, strict=True))
    parameters[1].grad = None
    _average(parameters, 2)
    assert parameters[1].grad is None
    assert torch.equal(parameters[2].grad, gradients[2])
