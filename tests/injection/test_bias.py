"""Biases that are trained beside the factors."""

from __future__ import annotations

import copy
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from pera_lightning import (
    PeraCallback,
    PeraConfig,
    adapter_disabled,
    adapter_state_dict,
    inject_adapter,
    load_adapter,
    merge_adapter,
    quantize_model,
    remove_adapter,
    save_adapter,
)
from pera_lightning.errors import ConfigError, TargetError
from tests.support.models import Regressor, randomise_adapter, tiny_gpt2, token_ids


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 8, bias=False), nn.Linear(8, 2))


def trained(**options: object) -> nn.Module:
    """An adapted network after one step of training."""
    model = network()
    inject_adapter(model, PeraConfig(2, **options))
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.5)
    model(torch.randn(4, 6)).square().sum().backward()
    optimizer.step()
    return model


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, set()),
        ({"bias": "adapted"}, {"0.base_layer.bias"}),
        ({"bias": "all"}, {"0.base_layer.bias", "1.bias", "3.bias"}),
        (
            {"bias": "all", "exclude_modules": ["1"], "modules_to_save": ["3"]},
            {"0.base_layer.bias", "3.bias", "3.weight"},
        ),
    ],
)
def test_which_are_trained(options: dict[str, object], expected: set[str]) -> None:
    before = network().state_dict()
    model = trained(**options)
    after = {name.replace(".base_layer", ""): (name, value) for name, value in model.state_dict().items()}
    changed = {after[name][0] for name, value in before.items() if not torch.equal(after[name][1], value)}
    assert changed == expected
    assert {name for name in adapter_state_dict(model) if "pera_" not in name} == expected


def test_saved_loaded_disabled_merged_and_removed(tmp_path: Path) -> None:
    x, plain = torch.randn(5, 6), network()
    model = trained(bias="all")
    expected = model(x)
    save_adapter(model, tmp_path)
    fresh = network()
    report = load_adapter(fresh, tmp_path)
    assert report is not None
    assert report.saved == ("0.bias", "1.bias", "3.bias")
    assert torch.equal(fresh(x), expected)
    with adapter_disabled(fresh):
        assert torch.equal(fresh(x), plain(x))
    assert torch.equal(fresh(x), expected)
    assert torch.equal(copy.deepcopy(fresh)(x), expected)
    torch.testing.assert_close(merge_adapter(fresh)(x), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(fresh[3].bias, model[3].bias)
    remove_adapter(model)
    assert torch.equal(model(x), plain(x))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_loaded_and_removed_in_inference_mode(tmp_path: Path) -> None:
    save_adapter(trained(bias="all", modules_to_save=["3"]), tmp_path)
    model = network()
    with torch.inference_mode():
        load_adapter(model, tmp_path)
    with adapter_disabled(model):
        pass
    remove_adapter(model)
    assert not any(parameter.is_inference() for parameter in model.parameters())
    model(torch.randn(5, 6)).sum().backward()


def test_over_quantised_and_transposed_layers(tmp_path: Path) -> None:
    model = tiny_gpt2()
    quantize_model(model, "nf4")
    fresh, ids = copy.deepcopy(model), token_ids()
    inject_adapter(model, PeraConfig(2, bias="adapted"))
    randomise_adapter(model)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("base_layer.bias"):
                assert value.requires_grad
                value.add_(1)
    save_adapter(model, tmp_path)
    load_adapter(fresh, tmp_path)
    assert torch.equal(fresh(input_ids=ids).logits, model(input_ids=ids).logits)


def test_in_a_trainer(tmp_path: Path) -> None:
    options = {"max_epochs": 1, "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    module = Regressor()
    before = module.net[0].bias.clone()
    trainer = pl.Trainer(default_root_dir=tmp_path, callbacks=[PeraCallback(2, bias="adapted")], **options)
    trainer.fit(module)
    learned = module.net[0].base_layer.bias
    assert not torch.equal(learned, before)
    checkpoint = torch.load(trainer.checkpoint_callback.best_model_path, weights_only=True)
    assert {key for key in checkpoint["state_dict"] if "pera_" not in key} == {
        "net.0.base_layer.bias",
        "net.2.base_layer.bias",
    }
    again = Regressor()
    pl.Trainer(default_root_dir=tmp_path, callbacks=[PeraCallback(2, bias="adapted")], **options).test(
        again, ckpt_path=trainer.checkpoint_callback.best_model_path, verbose=False
    )
    assert torch.equal(again.net[0].base_layer.bias, learned)


def test_there_is_none() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    with pytest.raises(TargetError, match="no bias"):
        inject_adapter(model, PeraConfig(2, bias="all"))
    with pytest.raises(ConfigError, match="which biases"):
        PeraConfig(2, bias="lora_only")
