"""Merging from the files of a base model, without the model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pera_lightning import PeraConfig, inject_adapter, merge_adapter, save_adapter
from pera_lightning.errors import FolderError
from pera_lightning.export.lora.plain_lora import PeraTensors
from pera_lightning.export.merged import merged_shards
from pera_lightning.export.merged.merged_shards import merge_shards
from pera_lightning.export.place import export_kind
from pera_lightning.storage.whole_folder import whole_folder
from tests.support.base_folders import (
    adapt_and_save,
    add_tied_head,
    all_tensors,
    digests,
    merge_files,
    save_base_and_adapter,
)
from tests.support.models import randomise_adapter, tied_llama, tiny_bert_classifier, tiny_gpt2, tiny_llama, token_ids


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=token_ids()).logits.float()


CASES: dict[str, tuple[Callable[[], nn.Module], PeraConfig]] = {
    "untied": (tiny_llama, PeraConfig(2)),
    "tied": (tied_llama, PeraConfig(2)),
    "order 1": (tiny_llama, PeraConfig(2, order=1, alpha=4)),
    "order 3, scaled": (tiny_llama, PeraConfig(2, order=3, coefficient_scale="auto", use_rslora=True)),
    "Conv1D": (tiny_gpt2, PeraConfig(2)),
    "embedding and head": (tiny_llama, PeraConfig(2, target_modules=["embed_tokens", "lm_head", "q_proj"])),
    "biases and a norm": (
        lambda: tiny_llama(attention_bias=True),
        PeraConfig(2, bias="all", modules_to_save=["model.norm"]),
    ),
    "Conv1D and biases": (tiny_gpt2, PeraConfig(2, bias="adapted")),
    "saved head": (tiny_bert_classifier, PeraConfig(2, modules_to_save=["classifier"])),
    "saved embedding, tied": (
        tied_llama,
        PeraConfig(2, modules_to_save=["embed_tokens"]),
    ),
    "token rows": (tiny_llama, PeraConfig(2, trainable_tokens=[3, 7, 60])),
    "token rows, tied": (
        tied_llama,
        PeraConfig(2, trainable_tokens=[3, 7, 60]),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_transformers_loads_what_the_adapted_model_computes(tmp_path: Path, case: str) -> None:
    make, config = CASES[case]
    torch.manual_seed(0)
    model = make()
    model.save_pretrained(tmp_path / "base", max_shard_size="20KB")
    before = digests(tmp_path / "base")
    inject_adapter(model, config)
    randomise_adapter(model, 0.1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.requires_grad and "pera_" not in name and "token_rows" not in name:
                value.add_(0.1 * torch.randn_like(value))
    save_adapter(model, tmp_path / "adapter")
    torch.manual_seed(1)
    expected = outputs(model)
    report = merge_files(tmp_path / "adapter", tmp_path / "base", tmp_path / "out")
    loaded = type(model).from_pretrained(tmp_path / "out")
    torch.manual_seed(1)
    torch.testing.assert_close(outputs(loaded), expected, rtol=1e-4, atol=1e-5)
    assert digests(tmp_path / "base") == before
    assert digests(tmp_path / "out").keys() == before.keys()
    merged, wanted = loaded.state_dict(), merge_adapter(model).state_dict()
    assert merged.keys() == wanted.keys()
    for key, value in merged.items():
        torch.testing.assert_close(value, wanted[key], rtol=1e-5, atol=1e-6)
    assert report.into == "dense"
    assert report.weight_error < 1e-7


def test_half_precision_is_rounded_once(tmp_path: Path) -> None:
    model = tiny_llama().to(torch.bfloat16)
    base, adapter = save_base_and_adapter(model, tmp_path)
    exact = {name: layer.merged_weight() for name, layer in model.named_modules() if hasattr(layer, "merged_weight")}
    report = merge_files(adapter, base, tmp_path / "out")
    loaded = type(model).from_pretrained(tmp_path / "out")
    assert loaded.dtype == torch.bfloat16
    for name, weight in exact.items():
        # A sum in another order may fall on the other side of the middle between two values.
        same = loaded.get_submodule(name).weight == weight.to(torch.bfloat16)
        assert same.float().mean() > 0.999
    reported = merge_adapter(model)
    assert report.weight_error == pytest.approx(relative_error(exact, reported), rel=1e-2)
    assert 1e-4 < report.weight_error <= report.worst_error < 5e-3


def relative_error(exact: dict[str, Tensor], model: nn.Module) -> float:
    error = sum((model.get_submodule(name).weight - weight).square().sum() for name, weight in exact.items())
    return (error / sum(weight.square().sum() for weight in exact.values())).sqrt().item()


def test_another_dtype(tmp_path: Path) -> None:
    base, adapter = save_base_and_adapter(tiny_llama(), tmp_path)
    merge_files(adapter, base, tmp_path / "out", torch.float16)
    kinds = {value.dtype for file in (tmp_path / "out").glob("*.safetensors") for value in load_file(file).values()}
    assert kinds == {torch.float16}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float16"
    size = sum(value.nbytes for file in (tmp_path / "out").glob("*.safetensors") for value in load_file(file).values())
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == size
    assert index["weight_map"] == json.loads((base / "model.safetensors.index.json").read_text())["weight_map"]


def test_one_file(tmp_path: Path) -> None:
    model = tiny_llama()
    model.save_pretrained(tmp_path / "base")
    adapter = adapt_and_save(model, tmp_path / "adapter", None, tmp_path / "base")
    expected = outputs(model)
    merge_files(adapter, tmp_path / "base", tmp_path / "out")
    torch.manual_seed(0)
    assert sorted(digests(tmp_path / "out")) == ["config.json", "generation_config.json", "model.safetensors"]
    loaded = type(model).from_pretrained(tmp_path / "out")
    assert outputs(loaded).shape == expected.shape
    torch.testing.assert_close(loaded(input_ids=IDS).logits, model(input_ids=IDS).logits, rtol=1e-4, atol=1e-5)


IDS = torch.arange(3, 24).view(3, 7)


@pytest.mark.parametrize("way", ["prefix in the model", "prefix in the file", "module of somebody's own"])
def test_names_with_another_prefix(tmp_path: Path, way: str) -> None:
    model = tiny_llama(tie_word_embeddings=True)
    base, config = tmp_path / "base", PeraConfig(2, target_modules=["q_proj", "down_proj"], modules_to_save=["norm"])
    (model.model if way == "prefix in the model" else model).save_pretrained(base, max_shard_size="20KB")
    owner = {
        "prefix in the model": model,
        "prefix in the file": model.model,
        "module of somebody's own": nn.ModuleDict({"net": model}),
    }[way]
    adapter = adapt_and_save(owner, tmp_path / "adapter", config, base)
    expected = model(input_ids=IDS).logits
    merge_files(adapter, base, tmp_path / "out")
    loaded = type(model).from_pretrained(tmp_path / "out")
    torch.testing.assert_close(loaded(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-5)


def test_rows_of_a_tied_weight_that_the_files_hold_twice(tmp_path: Path) -> None:
    model = tiny_llama(tie_word_embeddings=True)
    base, adapter = save_base_and_adapter(model, tmp_path, PeraConfig(2, trainable_tokens=[5, 9]))
    add_tied_head(base)
    expected = model(input_ids=IDS).logits
    merge_files(adapter, base, tmp_path / "out")
    tensors = all_tensors(tmp_path / "out")
    assert torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])
    loaded = type(model).from_pretrained(tmp_path / "out")
    torch.testing.assert_close(loaded(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-5)


def test_files_beside_the_weights(tmp_path: Path) -> None:
    base, adapter = save_base_and_adapter(tiny_llama(), tmp_path)
    copied = ("tokenizer.json", "tokenizer.model", "merges.txt", "chat_template.jinja", "modeling_own.py", "LICENSE")
    left = ("optimizer.bin", "pytorch_model.bin", "training_args.bin", "trainer_state.json", "adapter_config.json")
    left += ("pytorch_model.bin.index.json", "model.gguf", "optimizer.pt", ".gitattributes")
    for name in (*copied, *left):
        (base / name).write_text(name)
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tools.jinja").write_text("tools")
    merge_files(adapter, base, tmp_path / "out")
    for name in (*copied, "additional_chat_templates/tools.jinja", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (base / name).read_bytes()
    assert not [name for name in left if (tmp_path / "out" / name).exists()]


MEMORY = """
import json, resource, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from pera_lightning import PeraConfig
from pera_lightning.checkpoint import Manifest
from pera_lightning.export.merged.merged_shards import merge_shards
from pera_lightning.export.lora.plain_lora import PeraTensors
from pera_lightning.injection import LayerPlan

FILES, LAYERS = 10, 4

def make(folder, rows, columns):
    folder.mkdir()
    plans, tensors, weight_map = {}, {}, {}
    for file in range(FILES):
        names = [f"{file}.{layer}" for layer in range(LAYERS)]
        save_file({f"{name}.weight": torch.randn(rows, columns) for name in names}, folder / f"{file}.safetensors")
        for name in names:
            weight_map[f"{name}.weight"] = f"{file}.safetensors"
            plans[name] = LayerPlan(2, None)
            tensors |= {f"{name}.pera_A": torch.randn(2, columns), f"{name}.pera_B": torch.randn(rows, 2)}
            tensors[f"{name}.pera_h"] = torch.randn(3)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text("{}")
    return PeraTensors(Manifest(PeraConfig(2), plans, architecture="Own"), tensors)

def merge(name, rows, columns):
    base, out = Path(sys.argv[1], name), Path(sys.argv[1], name + "-out")
    adapter = make(base, rows, columns)
    out.mkdir()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    merge_shards(adapter, base, out)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024

merge("warm", 8, 8)
file = LAYERS * 512 * 1024 * 4
print(merge("real", 512, 1024) / file, FILES)
"""


def test_memory_stays_near_one_file(tmp_path: Path) -> None:
    """Of ten files, all of which change; what is mapped of the base counts too."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    grown, files = map(float, done.stdout.split())
    assert grown < 4 < files
    assert len(list((tmp_path / "real-out").glob("*.safetensors"))) == files


def test_a_crash_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, adapter = save_base_and_adapter(tiny_llama(), tmp_path)
    before, written = digests(base), []

    def fail_at_the_second(tensors: dict[str, Tensor], path: Path, **options: Any) -> None:
        written.append(path)
        if len(written) == 2:
            raise OSError("no space left on device")
        save_file(tensors, path, **options)

    monkeypatch.setattr(merged_shards, "save_file", fail_at_the_second)
    with (
        pytest.raises(FolderError, match="no space left"),
        whole_folder(tmp_path / "out", export_kind("merged")) as folder,
    ):
        merge_shards(PeraTensors.of(adapter), base, folder)
    assert len(written) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]
    assert digests(base) == before
