from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pera_lightning import PeraConfig, export_lora, inject_adapter, save_adapter
from pera_lightning.errors import InjectionError
from pera_lightning.export.lora.factors_format import read_factors
from pera_lightning.export.lora.peft_format import read_peft
from pera_lightning.functional import expanded_rank
from pera_lightning.injection import adapted_layers
from tests.support.exports import adapted, by_peft, logits
from tests.support.models import randomise_adapter, tied_llama, tiny_bert_classifier, tiny_gpt2, tiny_llama, token_ids

# PEFT looks at an attribute of transformers that is about to be renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (tiny_llama, {}),
        (tiny_llama, {"order": 1, "alpha": 9.0}),
        (tiny_llama, {"order": 3, "rank": 2, "use_rslora": True, "alpha": 3.0}),
        (tiny_llama, {"terms": "square", "coefficient_scale": "auto"}),
        (tiny_llama, {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 5}, "alpha_pattern": {"v_proj": 16.0}}),
        (tiny_llama, {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
        (tiny_gpt2, {}),
        (tiny_bert_classifier, {"modules_to_save": ["classifier"]}),
    ],
)
def test_peft_computes_the_same(make: Callable[..., nn.Module], options: dict[str, Any], tmp_path: Path) -> None:
    model, ids = adapted(make, **options), token_ids()
    if "modules_to_save" in options:
        with torch.no_grad():
            model.classifier.weight.normal_()
    expected = logits(model, ids)
    report = export_lora(model, tmp_path)
    assert report.exact
    assert report.rank == max(fit.expanded_rank for fit in report.layers.values())
    # The adapter is left as it was.
    torch.testing.assert_close(logits(model, ids), expected, rtol=0, atol=0)
    torch.testing.assert_close(by_peft(model, tmp_path, ids), expected, rtol=1e-5, atol=1e-5)


def test_hooks_of_the_model_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_llama()
    model.model.layers[1].mlp.up_proj.register_forward_hook(lambda module, args, output: 3 * output)
    inject_adapter(model, PeraConfig(2))
    randomise_adapter(model)
    export_lora(model, tmp_path / "hooked")
    assert "holds no hooks: those of 'model.layers.1.mlp.up_proj' act" in caplog.text
    caplog.clear()
    export_lora(adapted(), tmp_path / "plain")
    assert "hooks" not in caplog.text


def test_what_merge_would_refuse_is_not_exported(tmp_path: Path) -> None:
    model = adapted()
    name, layer = next(adapted_layers(model))
    layer.base_layer.register_forward_hook(lambda module, args, output: 3 * output)
    with pytest.raises(InjectionError, match=f"{name}.*forward hooks on its base_layer"):
        export_lora(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_servers_read(tmp_path: Path) -> None:
    model = adapted(rank_pattern={"q_proj": 2})
    export_lora(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    rank = expanded_rank(4, 2)
    assert (config["peft_type"], config["task_type"], config["r"], config["lora_alpha"]) == (
        "LORA",
        "CAUSAL_LM",
        rank,
        rank,
    )
    assert not config["rank_pattern"]
    assert not config["alpha_pattern"]
    assert not config["use_rslora"]
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert {key.split(".lora_")[0].removeprefix("base_model.model.") for key in tensors} == {
        name for name, _ in adapted_layers(model)
    }
    # One rank for all: servers know no other.
    assert all(value.shape[0 if ".lora_A." in key else 1] == rank for key, value in tensors.items())
    assert {value.dtype for value in tensors.values()} == {torch.float32}


def test_the_card_tells_where_it_comes_from(tmp_path: Path) -> None:
    save_adapter(adapted(), tmp_path / "pera", base_model="org/base")
    report = export_lora(tmp_path / "pera", tmp_path / "lora", 5)
    card = (tmp_path / "lora/README.md").read_text()
    assert card.startswith("---\nlibrary_name: peft\n")
    assert "base_model: org/base\n---" in card
    assert str(report) in card
    assert "AutoModelForCausalLM.from_pretrained('org/base')" in card


def test_a_folder_is_exported_without_its_model(tmp_path: Path) -> None:
    model = adapted(tiny_gpt2, target_modules=["c_attn", "wte"], coefficient_scale=30.0)
    save_adapter(model, tmp_path / "pera")
    export_lora(model, tmp_path / "model")
    report = export_lora(tmp_path / "pera", tmp_path / "folder")
    assert report.certificate is None
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "model" / name).read_bytes() == (tmp_path / "folder" / name).read_bytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    model = adapted(scale=1e-3)
    report = export_lora(model, tmp_path, dtype=dtype)
    assert {value.dtype for value in load_file(tmp_path / "adapter_model.safetensors").values()} == {dtype}
    bound = {torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]  # half a unit in the last place, of either factor
    assert 0 < max(fit.rounding for fit in report.layers.values()) < 2 * bound


def test_cut_to_a_rank(tmp_path: Path) -> None:
    model = adapted()
    changes = {name: layer.delta_weight().detach().double() for name, layer in adapted_layers(model)}
    report = export_lora(model, tmp_path, 5)
    assert (report.rank, report.exact) == (5, False)
    for name, factors in read_peft(tmp_path).factors.items():
        error = (factors.up.double() @ factors.down.double() - changes[name]).norm() / changes[name].norm()
        dense = torch.linalg.svdvals(changes[name])
        torch.testing.assert_close(error, dense[5:].norm() / dense.norm(), rtol=1e-3, atol=1e-6)
        assert report.layers[name].kept_energy == pytest.approx(1 - error.item() ** 2, rel=1e-5)


def test_a_smaller_rank_that_would_do_is_named(tmp_path: Path) -> None:
    model = adapted()
    for _, layer in adapted_layers(model):
        # Polynomial terms that are there, and next to nothing.
        layer.pera_h.data *= 1e-6
    report = export_lora(model, tmp_path / "exact")
    assert report.smaller is not None
    assert (report.smaller.rank, report.rank) == (4, expanded_rank(4, 2))
    assert 0 < report.smaller.error < 1e-3
    assert f"rank 4 instead of {report.rank}: error of dW {report.smaller.error:.0e}" in str(report)
    assert json.loads((tmp_path / "exact/export_report.json").read_text())["smaller"]["rank"] == 4
    cut = export_lora(model, tmp_path / "cut", 4)
    assert cut.smaller is None
    assert 1 - min(fit.kept_energy for fit in cut.layers.values()) == pytest.approx(report.smaller.error**2, abs=1e-12)


def test_no_smaller_rank_is_named_where_all_of_it_is_needed(tmp_path: Path) -> None:
    report = export_lora(adapted(order=1), tmp_path)
    assert report.smaller is None
    assert "instead of" not in str(report)


def test_a_rank_above_the_expanded_one_is_exact(tmp_path: Path) -> None:
    report = export_lora(adapted(), tmp_path, 64)
    assert (report.rank, report.exact) == (expanded_rank(4, 2), True)


def test_the_smallest_rank_that_holds_an_error(tmp_path: Path) -> None:
    model = adapted(rank_pattern={"q_proj": 1})  # layers that need different ranks
    changes = [torch.linalg.svdvals(layer.delta_weight().detach().double()) for _, layer in adapted_layers(model)]
    report = export_lora(model, tmp_path, max_error=0.05)
    lost = [max((values[rank:].norm() / values.norm()).item() for values in changes) for rank in range(15)]
    assert lost[report.rank] <= 0.05 < lost[report.rank - 1]


def test_factors_under_the_layers_own_names(tmp_path: Path) -> None:
    model = adapted()
    report = export_lora(model, tmp_path, to="safetensors")
    assert report.certificate is not None
    assert report.certificate.max_difference < 1e-5
    factors = read_factors(tmp_path).factors
    for name, layer in adapted_layers(model):
        torch.testing.assert_close(factors[name].up @ factors[name].down, layer.delta_weight(), rtol=1e-5, atol=1e-6)
    assert not (tmp_path / "adapter_config.json").exists()


def test_over_a_quantised_base(tmp_path: Path) -> None:
    from pera_lightning import quantize_model

    model = tiny_llama()
    quantize_model(model, "nf4")
    inject_adapter(model, PeraConfig(4))
    randomise_adapter(model)
    ids = token_ids()
    expected = logits(model, ids)
    report = export_lora(model.eval(), tmp_path)
    assert report.certificate is not None
    assert report.certificate.max_difference < 1e-4
    torch.testing.assert_close(by_peft(model, tmp_path, ids), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Model (has|with) `tie_word_embeddings=True`:UserWarning")
def test_tied_heads_are_no_obstacle_for_peft(tmp_path: Path) -> None:
    model = adapted(tied_llama, target_modules=["q_proj", "lm_head"])
    ids = token_ids()
    expected = logits(model, ids)
    export_lora(model, tmp_path)
    torch.testing.assert_close(by_peft(model, tmp_path, ids), expected, rtol=1e-5, atol=1e-5)
