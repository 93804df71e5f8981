"""Adapters with trained token rows in an AdapterSet."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pera_lightning import AdapterSet, PeraConfig, adapter_state_dict, inject_adapter, save_adapter
from pera_lightning.errors import InjectionError
from pera_lightning.injection import token_layers
from tests.support.models import randomise_adapter, tiny_llama
from tests.support.module_state import Before

IDS = torch.arange(3, 24).view(3, 7)
TOKENS = {"first": {"embed_tokens": [5, 9]}, "second": {"lm_head": [9, 20, 3]}, "third": None}


def base() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return tiny_llama(tie_word_embeddings=True).double()


def made(folder: Path, name: str, **options: object) -> nn.Module:
    model = base()
    inject_adapter(model, PeraConfig(2, **{"target_modules": ["q_proj"], "trainable_tokens": TOKENS[name], **options}))
    randomise_adapter(model)
    with torch.no_grad():
        for _, layer in token_layers(model):
            layer.token_rows.delta.normal_()
    save_adapter(model, folder / name)
    return model


@pytest.fixture
def models(tmp_path: Path) -> dict[str, nn.Module]:
    return {name: made(tmp_path, name) for name in TOKENS}


def logits(model: nn.Module) -> Tensor:
    return model(input_ids=IDS).logits


def test_switching(models: dict[str, nn.Module], tmp_path: Path) -> None:
    model = base()
    before, plain = Before.of(model), logits(model)
    adapters = AdapterSet(model)
    for name in models:
        adapters.load(name, tmp_path / name)
    for name in [*models, *reversed(models), None]:
        adapters.switch(name)
        assert torch.equal(logits(model), plain if name is None else logits(models[name]))
        if name is not None:
            ours, theirs = adapter_state_dict(model), adapter_state_dict(models[name])
            assert list(ours) == list(theirs)
    before.assert_restored(model)


def test_rows_follow_the_model(models: dict[str, nn.Module], tmp_path: Path) -> None:
    model = base()
    adapters = AdapterSet(model)
    adapters.load("first", tmp_path / "first")
    model.float()
    adapters.switch("first")
    torch.testing.assert_close(logits(model), logits(models["first"]).float(), rtol=1e-4, atol=1e-5)
    assert model.lm_head.token_rows.delta.dtype == torch.float32
    assert model.lm_head.token_rows.tokens.dtype == torch.int64


def test_mixtures_add_the_changes_of_rows(models: dict[str, nn.Module], tmp_path: Path) -> None:
    weights = {"first": 0.5, "second": -2.0, "third": 1.0}
    model, dense = base(), base()
    adapters = AdapterSet(model)
    for name in models:
        adapters.load(name, tmp_path / name)
    report = adapters.mix("mixture", weights)
    assert report.tokens == {"model.embed_tokens": 4}
    adapters.switch("mixture")
    with torch.no_grad():
        for name, weight in weights.items():
            for key, layer in models[name].named_modules():
                if key.endswith("q_proj"):
                    dense.get_submodule(key).weight += weight * layer.delta_weight()
            for _, layer in token_layers(models[name]):
                dense.lm_head.weight[list(layer.ids)] += weight * layer.token_rows.delta
    torch.testing.assert_close(logits(model), logits(dense), rtol=1e-10, atol=1e-10)
    save_adapter(model, tmp_path / "mixture")
    again = AdapterSet(base())
    again.load("mixture", tmp_path / "mixture")
    again.switch("mixture")
    assert torch.equal(logits(again.model), logits(model))


@pytest.mark.parametrize("options", [{"modules_to_save": ["lm_head"]}, {"target_modules": ["q_proj", "lm_head"]}])
def test_rows_of_what_another_changes_are_not_mixed(options: dict[str, object], tmp_path: Path) -> None:
    adapters = AdapterSet(base())
    made(tmp_path, "first")
    made(tmp_path, "third", **options)
    for name in ("first", "third"):
        adapters.load(name, tmp_path / name)
    with pytest.raises(InjectionError, match="trains rows of"):
        adapters.mix("mixture", {"first": 1.0, "third": 1.0})
    assert adapters.names == ("first", "third")


def test_merged_rows_are_not_exchanged(models: dict[str, nn.Module]) -> None:
    model = models["first"].eval()
    adapters = AdapterSet(model, name="first")
    for _, layer in token_layers(model):
        layer.merge()
    with pytest.raises(InjectionError, match="merged or disabled"):
        adapters.switch(None)
