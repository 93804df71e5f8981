"""FSDP2 and tensor parallelism through Lightning's `ModelParallelStrategy`, in two and four processes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pera_lightning import PeraCallback, load_adapter
from pera_lightning.checkpoint.training.consolidation import consolidate
from pera_lightning.checkpoint.training.training_checkpoint import read_checkpoint
from pera_lightning.errors import CheckpointError
from tests.conftest import OLD_TORCH
from tests.support.hostile_checkpoints import HOSTILE
from tests.support.models import tiny_llama
from tests.support.noisy import Noisy
from tests.support.pretrained import save_pretrained
from tests.support.processes import run_script
from tests.support.sharded import without_parallelism
from tests.support.trainers import cpu_trainer

Found = dict[str, Any]
# Adam divides by the size of gradients that are almost zero in the first steps; sums in another order are off there.
CLOSE = {"rtol": 1e-4, "atol": 2e-6}
LOSS = {"rtol": 2e-6, "atol": 0.0}


def run(folder: Path, part: str, processes: int) -> list[Found]:
    run_script("tests.support.sharded", folder, part, processes=processes)
    return [torch.load(folder / f"{part}-{rank}.pt", weights_only=True) for rank in range(processes)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parallel")
    torch.manual_seed(0)
    save_pretrained(folder / "model")
    rows = [{"instruction": f"say {letter}", "input": "", "output": 3 * letter} for letter in "abcdefghijkl"]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def language_models(folder: Path) -> list[Found]:
    return run(folder, "language_model", 2)


@pytest.fixture(scope="module")
def own_modules(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    folder = tmp_path_factory.mktemp("own")
    fit_in_one_process(folder)
    found = run(folder, "own_module", 2)
    # Each of the hostile checkpoints would make a file.
    assert len(list((folder / "late").glob("hostile-*"))) == len(HOSTILE)
    assert not list(folder.rglob("*-called"))
    return found


def fit_in_one_process(folder: Path) -> None:
    """A checkpoint of the same adapter, written without a strategy."""
    callback = PeraCallback(3, dropout=0.1, coefficient_scale="auto", modules_to_save=["net.3"], bias="adapted")
    trainer = cpu_trainer(folder, callback, max_epochs=1, num_sanity_val_steps=0)
    trainer.fit(Noisy())
    trainer.save_checkpoint(folder / "plain.ckpt")


def assert_same(left: Found, right: Found) -> None:
    assert left["adapter"].keys() == right["adapter"].keys()
    for name, value in left["adapter"].items():
        assert torch.equal(value, right["adapter"][name]), name


def assert_like_one_process(ranks: list[Found], expected: Found) -> None:
    """Losses of the steps, over all answer tokens of all processes, and adapters."""
    for rank in ranks:
        assert rank["losses"].keys() == expected["losses"].keys()
        for step, loss in expected["losses"].items():
            torch.testing.assert_close(rank["losses"][step], loss, **LOSS)
    for name, value in expected["adapter"].items():
        torch.testing.assert_close(ranks[0]["adapter"][name], value, **CLOSE)
    for name, value in expected["metrics"].items():
        if name.startswith("val_"):
            assert ranks[0]["metrics"][name] == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fsdp", {}),
        ("tensor", {}),
        ("tokens", {"trainable_tokens": [5, 6, 30]}),
        ("nf4", {"quantization": "nf4-dq"}),
        ("int8", {"quantization": "int8"}),
    ],
)
# In 4 bits on some CPUs (bases/narrow_rows.py) the tiny layers look like pretrained ones below a random head.
@pytest.mark.filterwarnings("ignore:PERA. the output head 'model.lm_head' is frozen:UserWarning")
def test_equals_one_process(
    language_models: list[Found], folder: Path, tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    if name not in language_models[0]:
        pytest.skip(OLD_TORCH)
    expected = without_parallelism(tmp_path, folder / "model", folder / "rows.jsonl", **options)
    ranks = [found[name] for found in language_models]
    assert_like_one_process(ranks, expected)
    assert_same(*ranks)


@pytest.mark.parametrize("name", ["fsdp", "tensor"])
def test_resumed_language_model_is_the_same_bit_by_bit(language_models: list[Found], name: str) -> None:
    for found in language_models:
        whole, resumed = found[name], found[f"{name} resumed"]
        assert {step: loss for step, loss in whole["losses"].items() if step[0] == 1}.keys() == resumed["losses"].keys()
        assert all(torch.equal(whole["losses"][step], loss) for step, loss in resumed["losses"].items())
        assert_same(whole, resumed)


def test_only_the_first_process_loads_the_weights(language_models: list[Found]) -> None:
    assert [found["loads"] for found in language_models] == [1, 0]


def test_each_process_holds_its_part(language_models: list[Found]) -> None:
    def bytes_of(name: str) -> list[int]:
        return [found[name]["own_bytes"] for found in language_models]

    adapter = sum(value.numel() for value in language_models[0]["fsdp"]["adapter"].values())
    base = sum(value.numel() for value in tiny_llama().parameters())
    every = 4 * (base + adapter)
    # Odd numbers of rows leave the first process one more: of h, but not of A, which is sharded over its columns.
    assert sum(bytes_of("fsdp")) == every
    assert max(bytes_of("fsdp")) - min(bytes_of("fsdp")) < 100
    # By columns and rows the embedding and the norms stay whole, in both processes.
    assert every / 2 < bytes_of("tensor")[0] < 0.7 * every
    # In 8 bits the packed weights stay whole, in 4 bits they are shared out too.
    assert sum(bytes_of("int8")) > 0.6 * every
    if "nf4" not in language_models[0]:
        pytest.skip(OLD_TORCH)
    assert sum(bytes_of("nf4")) < 4 * (0.35 * base + adapter)


def test_checkpoints_hold_the_adapter_alone(language_models: list[Found], folder: Path) -> None:
    for name in ("fsdp", "tensor"):
        held = read_checkpoint(folder / name / "checkpoints/epoch=1.ckpt")
        assert held.distributed
        assert held.shapes.keys() == language_models[0][name]["adapter"].keys()
        for key, value in held.tensors().items():
            assert torch.equal(value, language_models[0][name]["adapter"][key])


@pytest.mark.parametrize("name", ["fsdp", "tensor", "nf4"])
def test_the_folder_is_of_the_best_checkpoint_and_loads_into_a_plain_model(
    language_models: list[Found], folder: Path, name: str
) -> None:
    if name not in language_models[0]:
        pytest.skip(OLD_TORCH)
    best = Path(language_models[0][name]["best"])
    stored = load_file(folder / name / "adapter/adapter_model.safetensors")
    held = read_checkpoint(best).tensors()
    assert all(torch.equal(held[f"model.{key}"], value) for key, value in stored.items())
    assert any(value.any() for key, value in stored.items() if key.endswith("pera_h"))
    if name != "nf4":
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder / "model")
        load_adapter(model, folder / name / "adapter")


def test_consolidate(language_models: list[Found], folder: Path, tmp_path: Path) -> None:
    checkpoint = folder / "fsdp/checkpoints/epoch=0.ckpt"
    consolidate(checkpoint, tmp_path / "adapter")
    stored = load_file(tmp_path / "adapter/adapter_model.safetensors")
    held = read_checkpoint(checkpoint).tensors()
    assert {f"model.{key}" for key in stored} == held.keys()
    assert all(torch.equal(held[f"model.{key}"], value) for key, value in stored.items())


def test_consolidate_refuses_what_lacks_a_process(language_models: list[Found], folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "checkpoint"
    shutil.copytree(folder / "fsdp/checkpoints/epoch=0.ckpt", copy)
    (copy / "__1_0.distcp").unlink()
    with pytest.raises(CheckpointError, match=r"__1_0\.distcp"):
        consolidate(copy, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_other_numbers_of_processes_go_on(language_models: list[Found], folder: Path) -> None:
    expected = [found["fsdp"] for found in language_models]
    later = {step for step in expected[0]["losses"] if step[0] == 1}
    mean = {step: torch.stack([rank["losses"][step] for rank in expected]).mean() for step in later}
    [one] = run(folder, "one", 1)
    four = run(folder, "four", 4)
    # Two pairs: within a pair both see the same rows.
    for found in ([one], four):
        assert found[0]["losses"].keys() == later
        for step in later:
            loss = torch.stack([rank["losses"][step] for rank in found]).mean()
            torch.testing.assert_close(loss, mean[step], **LOSS)
        for name, value in expected[0]["adapter"].items():
            torch.testing.assert_close(found[0]["adapter"][name], value, **CLOSE)


def test_own_modules_are_sharded_with_their_adapters(own_modules: list[Found]) -> None:
    for name in ("early", "late"):
        for found in own_modules:
            assert found[name]["sharded"]
            # Two processes share the columns of A, whose three rows are uneven; somebody's own fully_shard pads them.
            assert found[name]["columns"] == (["net.0.pera_A", "net.2.pera_A"] if name == "early" else [])
            assert_same(found[name], own_modules[0][name])
    # Sharded before or after the adapters came, it is the same training.
    assert_same(own_modules[0]["early"], own_modules[0]["late"])


@pytest.mark.parametrize("name", ["folder", "file"])
def test_resumed_own_module_is_the_same_bit_by_bit(own_modules: list[Found], name: str) -> None:
    """From within an epoch, between two batches of an accumulation, with dropout and shuffled, augmented data."""
    for found in own_modules:
        whole, resumed = found[name], found[f"{name} resumed"]
        assert resumed["losses"].keys() == whole["losses"].keys() - {(0, 0), (0, 1), (0, 2)}
        assert all(torch.equal(whole["losses"][step], loss) for step, loss in resumed["losses"].items())
        assert_same(whole, resumed)


def test_a_sharded_adapter_is_saved_and_loaded_by_all_processes(own_modules: list[Found]) -> None:
    for found in own_modules:
        before, after = found["loaded"]["before"], found["loaded"]["after"]
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], value) for key, value in after.items())


def test_what_cannot_go_on_sharded_is_refused(own_modules: list[Found]) -> None:
    for found in own_modules:
        assert "written without ModelParallelStrategy" in found["plain file"]
        assert "StochasticWeightAveraging under ModelParallelStrategy" in found["averaging"]


def test_a_folder_is_no_checkpoint_of_a_single_process(language_models: list[Found], folder: Path) -> None:
    with pytest.raises(CheckpointError, match="python -m pera_lightning consolidate"):
        without_parallelism(
            folder / "alone",
            folder / "model",
            folder / "rows.jsonl",
            ckpt_path=folder / "fsdp/checkpoints/epoch=0.ckpt",
        )


REFUSALS = {
    "list": "it names pathlib.Path.touch",
    "entry": "holds objects beside tensors",
    "rest": "holds objects beside tensors",
    "rank": "the rank of 'net.0' is 3 there and 2 here",
    "targets": "layer 'net.2' is adapted there only",
    "no checkpoint": "This is no checkpoint",
    "unsharded": "Parts of the adapter are not sharded",
    "partly": "An adapter is in no sharded module",
    "only split": "Parts of the adapter are not sharded",
    "split": "use parallelize_adapted",
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refused_in_every_process_at_once(own_modules: list[Found], name: str) -> None:
    messages = [found["refusals"][name] for found in own_modules]
    assert messages[0] == messages[1]
    assert REFUSALS[name] in messages[0]
    # And the next fit runs as if nothing had been.
    assert_same(own_modules[0]["afterwards"], own_modules[0]["late"])
