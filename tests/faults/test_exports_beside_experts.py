"""Exports beside fused experts, and of models that PEFT takes in part: all of it arrives, or nothing is written."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn

from pera_lightning import (
    export_lora,
    inject_lora,
    load_adapter,
    remove_adapter,
    save_adapter,
)
from pera_lightning.errors import ExportError
from pera_lightning.export.merged.merged_model import export_merged
from pera_lightning.injection import adapted_layers
from tests.cli.test_main import run
from tests.support.earlier_adapters import forget_checksums
from tests.support.exports import adapted, logits
from tests.support.mixtures import MIXTURES, mixture
from tests.support.pretrained import save_pretrained

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
TAKEN = [name for name in MIXTURES if name != "LagunaForCausalLM"]
IDS = torch.arange(3, 24).view(3, 7)


def adapted_mixture(name: str, **options: Any) -> nn.Module:
    # Routers that are linear layers by class return tuples.
    return adapted(lambda: mixture(name), exclude_modules=["router"] if "Llama4" in name else [], **options)


def saved(folder: Path, model: nn.Module, base: nn.Module) -> Path:
    """A base and its adapter as folders; returns that of the adapter."""
    save_pretrained(folder / "base", base)
    save_adapter(model, folder / "adapter", base_model=str(folder / "base"))
    return folder / "adapter"


@pytest.mark.parametrize("name", TAKEN)
def test_peft_applies_every_layer_beside_fused_experts(name: str, tmp_path: Path) -> None:
    model = adapted_mixture(name)
    expected = logits(model, IDS)
    changes = {layer_name: layer.delta_weight().detach() for layer_name, layer in adapted_layers(model)}
    assert any(layer_name.endswith("gate_proj") for layer_name in changes)
    export_lora(model, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated")
        loaded = PeftModel.from_pretrained(remove_adapter(model), tmp_path)
    torch.testing.assert_close(logits(loaded, IDS), expected, rtol=1e-5, atol=1e-5)
    for layer_name, change in changes.items():
        found = loaded.get_base_model().get_submodule(layer_name).get_delta_weight("default")
        torch.testing.assert_close(found, change, rtol=1e-5, atol=1e-6)


def test_the_export_of_a_folder_alone_names_the_same_targets(tmp_path: Path) -> None:
    model = adapted_mixture("Qwen3MoeForCausalLM")
    save_adapter(model, tmp_path / "new")
    config = json.loads((forget_checksums(tmp_path / "new") / "adapter_config.json").read_text())
    # As it was written before the trait was known, and by code of the hub's own.
    (tmp_path / "old").mkdir()
    (tmp_path / "old/adapter_config.json").write_text(json.dumps({**config, "layer_traits": {}}))
    (tmp_path / "old/adapter_model.safetensors").write_bytes((tmp_path / "new/adapter_model.safetensors").read_bytes())
    for source in (model, tmp_path / "new", tmp_path / "old"):
        out = tmp_path / "out" / str(id(source))
        export_lora(source, out)
        written = json.loads((out / "adapter_config.json").read_text())
        assert written["target_parameters"] == [
            f"model.layers.0.mlp.{part}_proj.weight" for part in ("gate", "up", "down")
        ]
        assert not [name for name in written["target_modules"] if ".mlp." in name]


def test_models_without_experts_have_no_target_parameters(tmp_path: Path) -> None:
    export_lora(adapted(), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert "target_parameters" not in config
    assert "model.layers.0.mlp.gate_proj" in config["target_modules"]


def test_the_export_is_taken_back(tmp_path: Path) -> None:
    model = adapted_mixture("Qwen2MoeForCausalLM")
    expected = logits(model, IDS)
    export_lora(model, tmp_path)
    again = mixture("Qwen2MoeForCausalLM")
    inject_lora(again, tmp_path)
    torch.testing.assert_close(logits(again.eval(), IDS), expected, rtol=1e-5, atol=1e-5)


def test_the_command_line_exports_a_mixture_of_experts(tmp_path: Path) -> None:
    name = "Qwen3MoeForCausalLM"
    adapter = saved(tmp_path, adapted_mixture(name), mixture(name))
    printed = run("export", "--adapter", adapter, "--out", tmp_path / "lora")
    assert "the largest is the same at 100.00% of" in printed
    printed = run("export", "--adapter", adapter, "--out", tmp_path / "merged", "--to", "merged")
    assert "the largest is the same at 100.00% of" in printed


def test_what_peft_would_leave_out_is_no_export(tmp_path: Path) -> None:
    # transformers renames `shared_experts` of this model once too often.
    name = "LagunaForCausalLM"
    model = adapted_mixture(name)
    adapter = saved(tmp_path, model, mixture(name))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ExportError, match=r"(?s)PEFT would not apply all.*shared_experts.* left out.*--to merged"):
        export_lora(model, tmp_path / "python")
    for words in ((), ("--rank", 2), ("--to", "vllm")):
        printed = run("export", "--adapter", adapter, "--out", tmp_path / "shell", *words, ok=False)
        assert "left out" in printed
        assert "PeftModel.from_pretrained" not in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_a_kind_of_model_that_peft_refuses(tmp_path: Path) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, bos_token_id=1, eos_token_id=2)
    with pytest.raises(ExportError, match=r"(?s)PEFT would not apply all.*out_proj.*incompatible with Mamba"):
        export_lora(adapted(lambda: MambaForCausalLM(config)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_adapter_is_what_load_adapter_loads(tmp_path: Path) -> None:
    # The merged model against the adapter's own files, not by the export's own comparison.
    name = "Glm4MoeForCausalLM"
    adapter = saved(tmp_path, adapted_mixture(name), mixture(name))
    export_merged(adapter, tmp_path / "out")
    from transformers import AutoModelForCausalLM

    model = mixture(name)
    load_adapter(model, adapter)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(logits(merged, IDS), logits(model.eval(), IDS), rtol=1e-5, atol=1e-5)
