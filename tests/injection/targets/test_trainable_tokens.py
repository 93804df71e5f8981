"""Trained rows of embeddings in whole models, against the plain model with a changed weight."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pera_lightning import (
    PeraConfig,
    adapter_disabled,
    adapter_state_dict,
    inject_adapter,
    load_adapter,
    merge_adapter,
    parameter_groups,
    quantize_model,
    remove_adapter,
    save_adapter,
)
from pera_lightning.errors import AdapterFileError, InjectionError
from pera_lightning.injection import adapter_bytes, token_layers
from tests.support.earlier_adapters import forget_checksums
from tests.support.models import randomise_adapter, tied_llama, tiny_gpt2, tiny_llama, token_ids
from tests.support.module_state import Before, values

IDS = (5, 9, 63)
MODELS = {
    "tied llama": tied_llama,
    "untied llama": lambda: tiny_llama(tie_word_embeddings=False),
    "gpt2": tiny_gpt2,
}
TABLE = {"tied llama": "model.embed_tokens", "untied llama": "model.embed_tokens", "gpt2": "transformer.wte"}
KEY = "model.embed_tokens.token_rows.delta"


def prompt() -> Tensor:
    ids = token_ids()
    ids[0, 1], ids[1, 2], ids[2, 0] = IDS
    return ids


def logits(model: nn.Module, ids: Tensor) -> Tensor:
    return model(input_ids=ids).logits


def change_rows(model: nn.Module, seed: int = 4) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, layer in token_layers(model):
            delta = layer.token_rows.delta
            delta.copy_(torch.randn(delta.shape, generator=generator))


def trained(make: Callable[[], nn.Module] = MODELS["tied llama"], **options: object) -> nn.Module:
    """A model with adapter and rows as training would leave them."""
    model = make()
    inject_adapter(model, PeraConfig(2, **{"trainable_tokens": IDS, **options}))
    randomise_adapter(model)
    change_rows(model)
    return model


def by_hand(model: nn.Module, plain: nn.Module, table: str) -> nn.Module:
    """The plain model with changed rows, trainable as a whole."""
    weight = plain.get_submodule(table).weight
    with torch.no_grad():
        for token, change in zip(IDS, model.get_submodule(table).token_rows.delta, strict=True):
            weight[token] += change
    return plain.requires_grad_(True)


@pytest.mark.parametrize("kind", MODELS)
def test_outputs_and_gradients_are_those_of_a_changed_weight(kind: str) -> None:
    model, ids = MODELS[kind]().double(), prompt()
    plain = copy.deepcopy(model)
    inject_adapter(model, PeraConfig(2, target_modules=".*c_attn|.*q_proj", trainable_tokens=list(IDS)))
    assert torch.equal(logits(model, ids), logits(plain, ids))
    change_rows(model)
    plain = by_hand(model, plain, TABLE[kind])
    expected, found = logits(plain, ids), logits(model, ids)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    loss = torch.randn_like(found)
    (found * loss).sum().backward()
    (expected * loss).sum().backward()
    delta = model.get_submodule(TABLE[kind]).token_rows.delta
    wanted = plain.get_submodule(TABLE[kind]).weight.grad[list(IDS)]
    torch.testing.assert_close(delta.grad, wanted, rtol=1e-9, atol=1e-9)
    trainable = {name for name, value in model.named_parameters() if value.requires_grad}
    assert {name.rpartition(".")[2] for name in trainable} == {"pera_A", "pera_B", "pera_h", "delta"}
    assert [name for name in trainable if name.endswith("delta")] == [f"{TABLE[kind]}.token_rows.delta"]


@pytest.mark.parametrize("kind", MODELS)
def test_everything_that_is_done_with_an_adapter(kind: str, tmp_path: Path) -> None:
    model, ids = MODELS[kind](), prompt()
    before, fresh, plain = Before.of(model), copy.deepcopy(model), logits(model, ids)
    report = inject_adapter(model, PeraConfig(2, trainable_tokens=IDS))
    assert report.tokens == {TABLE[kind]: 3}
    assert f"trained rows: 3 of {TABLE[kind]}" in str(report)
    randomise_adapter(model)
    change_rows(model)
    expected = logits(model, ids)
    assert not torch.allclose(expected, plain)
    with adapter_disabled(model):
        assert torch.equal(logits(model, ids), plain)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(copied, ids), expected)
        assert len([name for name, _ in copied.named_parameters() if name.endswith("delta")]) == 1
    save_adapter(model, tmp_path)
    loaded = load_adapter(fresh, tmp_path)
    assert loaded is not None
    assert (loaded.tokens, loaded.trainable) == (report.tokens, report.trainable)
    assert torch.equal(logits(fresh, ids), expected)
    change_rows(fresh, seed=8)
    load_adapter(fresh, tmp_path)
    assert torch.equal(logits(fresh, ids), expected)
    merge_adapter(fresh)
    torch.testing.assert_close(logits(fresh, ids), expected, rtol=1e-4, atol=1e-5)
    assert list(fresh.state_dict()) == before.keys
    tied = kind != "untied llama"
    assert (fresh.lm_head.weight is fresh.get_submodule(TABLE[kind]).weight) == tied
    for _, layer in token_layers(model):
        layer.merge()
    with adapter_disabled(model):
        assert torch.equal(logits(model, ids), plain)
    remove_adapter(model)
    before.assert_restored(model)


def test_the_head_alone_and_both_untied_ones() -> None:
    """New tokens of an untied model need rows in both matrices."""
    ids, make = prompt(), MODELS["untied llama"]
    both = {"embed_tokens": [5, 9], "lm_head": [63, 7]}
    for tokens in (both, {"lm_head": [63, 7]}):
        model = make().double()
        plain = copy.deepcopy(model)
        report = inject_adapter(model, PeraConfig(2, trainable_tokens=tokens))
        assert set(report.tokens) == {{"embed_tokens": "model.embed_tokens"}.get(name, name) for name in tokens}
        change_rows(model)
        with torch.no_grad():
            for name, layer in token_layers(model):
                plain.get_submodule(name).weight[list(layer.ids)] += layer.token_rows.delta
        torch.testing.assert_close(logits(model, ids), logits(plain, ids), rtol=1e-10, atol=1e-10)


def test_the_file_holds_the_rows_and_nothing_else_of_the_weight(tmp_path: Path) -> None:
    model = trained(lambda: tiny_llama(vocab_size=4096, tie_word_embeddings=True))
    tensors = adapter_state_dict(model)
    assert tensors[KEY].shape == (3, 32)
    assert all(".pera_" in key for key in tensors if key != KEY)
    save_adapter(model, tmp_path)
    size = (tmp_path / "adapter_model.safetensors").stat().st_size
    plain = tiny_llama(vocab_size=4096, tie_word_embeddings=True)
    inject_adapter(plain, PeraConfig(2))
    save_adapter(plain, tmp_path / "plain")
    without = (tmp_path / "plain" / "adapter_model.safetensors").stat().st_size
    assert 3 * 32 * 4 <= size - without < 3 * 32 * 4 + 200
    assert adapter_bytes(model) - adapter_bytes(plain) == 3 * 32 * 4
    assert "3 of model.embed_tokens" in (tmp_path / "README.md").read_text()


def test_after_a_resize(tmp_path: Path) -> None:
    """What users do: add tokens, resize, train the new rows, load into a base that is resized alike."""
    model, ids = MODELS["tied llama"](), torch.tensor([[3, 64, 65, 4]])
    torch.manual_seed(2)
    model.resize_token_embeddings(66, mean_resizing=False)
    fresh = copy.deepcopy(model)
    inject_adapter(model, PeraConfig(2, trainable_tokens=[64, 65]))
    change_rows(model)
    save_adapter(model, tmp_path)
    with pytest.raises(AdapterFileError, match=r"(?s)not in the table.*resize_token_embeddings"):
        load_adapter(MODELS["tied llama"](), tmp_path)
    load_adapter(fresh, tmp_path)
    assert torch.equal(logits(fresh, ids), logits(model, ids))
    with pytest.raises(TypeError):
        model.resize_token_embeddings(70)


def test_loading_other_rows_is_refused(tmp_path: Path) -> None:
    save_adapter(trained(), tmp_path)
    for other, words in (
        ((5, 9, 62), "there only: 63; here only: 62"),
        (None, "there only: 5, 9, 63; here only: none"),
    ):
        model = trained(trainable_tokens=other)
        before = values(model)
        with pytest.raises(AdapterFileError, match=words):
            load_adapter(model, tmp_path)
        assert all(torch.equal(value, before[name]) for name, value in values(model).items())


def test_loading_into_a_model_that_is_tied_otherwise_is_refused(tmp_path: Path) -> None:
    for kind in ("tied llama", "untied llama"):
        save_adapter(trained(MODELS[kind]), tmp_path)
        other = MODELS["untied llama" if kind == "tied llama" else "tied llama"]()
        before = Before.of(other)
        with pytest.raises(AdapterFileError, match="tie_word_embeddings"):
            load_adapter(other, tmp_path, allow_other_base=True)
        before.assert_restored(other)
        inject_adapter(other, PeraConfig(2, trainable_tokens=IDS))
        with pytest.raises(AdapterFileError, match=r"'model\.embed_tokens' is tied to (lm_head|nothing) there and to "):
            load_adapter(other, tmp_path, allow_other_base=True)


def test_files_from_before_there_were_token_rows(tmp_path: Path) -> None:
    ids = prompt()
    torch.manual_seed(1)
    model = trained(trainable_tokens=None)
    torch.manual_seed(1)
    fresh = MODELS["tied llama"]()
    save_adapter(model, tmp_path)
    path = forget_checksums(tmp_path) / "adapter_config.json"
    written = json.loads(path.read_text())
    del written["token_rows"], written["config"]["trainable_tokens"]
    path.write_text(json.dumps(written))
    load_adapter(fresh, tmp_path)
    assert torch.equal(logits(fresh, ids), logits(model, ids))


@pytest.mark.parametrize(
    "damage", [{"ids": [], "tied": []}, {"ids": [-1], "tied": []}, {"ids": [3]}, {"ids": 3, "tied": []}]
)
def test_damaged_files(damage: dict[str, object], tmp_path: Path) -> None:
    save_adapter(trained(), tmp_path)
    path = tmp_path / "adapter_config.json"
    written = json.loads(path.read_text())
    written["token_rows"]["model.embed_tokens"] = damage
    path.write_text(json.dumps(written))
    with pytest.raises(AdapterFileError, match="incomplete or damaged"):
        load_adapter(MODELS["tied llama"](), tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    make, ids = lambda: MODELS["tied llama"]().to(dtype), prompt()
    torch.manual_seed(1)
    model = make()
    plain = logits(model, ids)
    inject_adapter(model, PeraConfig(2, trainable_tokens=IDS))
    assert adapter_state_dict(model)[KEY].dtype == torch.float32
    assert torch.equal(logits(model, ids), plain)
    change_rows(model)
    weight, delta = model.model.embed_tokens.base_layer.weight, model.model.embed_tokens.token_rows.delta
    expected = weight.float().clone()
    expected[list(IDS)] += delta
    merge_adapter(model)
    assert torch.equal(model.lm_head.weight, expected.to(dtype))


def test_over_a_quantised_model(tmp_path: Path) -> None:
    make, ids = (lambda: tiny_llama(hidden_size=64, intermediate_size=64, tie_word_embeddings=True)), prompt()
    model = make()
    quantize_model(model, "nf4")
    fresh, plain = copy.deepcopy(model), logits(model, ids)
    inject_adapter(model, PeraConfig(2, trainable_tokens=IDS))
    assert torch.equal(logits(model, ids), plain)
    change_rows(model)
    logits(model, ids).square().sum().backward()
    assert model.lm_head.token_rows.delta.grad.abs().sum(dim=1).min() > 0
    expected = logits(model, ids)
    save_adapter(model, tmp_path)
    load_adapter(fresh, tmp_path)
    assert torch.equal(logits(fresh, ids), expected)
    for into in ("dequantized", "requantized"):
        merged = merge_adapter(copy.deepcopy(model), into=into)
        torch.testing.assert_close(logits(merged, ids), expected, rtol=1e-3, atol=1e-4)
        assert merged.lm_head.weight is merged.model.embed_tokens.weight


def test_generation_can_choose_a_trained_token() -> None:
    """The head's row counts: a tied token that nothing predicted becomes the answer."""
    model, ids = MODELS["tied llama"](), token_ids(1, 4)
    inject_adapter(model, PeraConfig(2, trainable_tokens=[9]))
    state = model.model(input_ids=ids).last_hidden_state[0, -1]
    with torch.no_grad():
        model.lm_head.token_rows.delta.copy_(100 * state[None])
    assert model.generate(input_ids=ids, max_new_tokens=1, do_sample=False)[0, -1] == 9


def test_optimizer_group() -> None:
    model = trained()
    groups = {
        group["name"]: group for group in parameter_groups(model.named_parameters(), learning_rate=0.1, b_lr_factor=4)
    }
    assert [id(value) for value in groups["other"]["params"]] == [id(model.lm_head.token_rows.delta)]
    assert groups["other"]["lr"] == 0.1


def test_follows_the_model_to_another_dtype() -> None:
    model, ids = trained(), prompt()
    expected = logits(model, ids)
    torch.testing.assert_close(logits(model.double(), ids).float(), expected, rtol=1e-4, atol=1e-5)
    assert model.lm_head.token_rows is model.model.embed_tokens.token_rows
    assert model.lm_head.token_rows.delta.dtype == torch.float64


def test_a_merge_that_cannot_be_changes_nothing() -> None:
    model = trained()
    with torch.no_grad():
        model.lm_head.token_rows.delta[0, 0] = torch.inf
    before = values(model)
    with pytest.raises(InjectionError, match="infinity"):
        merge_adapter(model)
    assert all(torch.equal(value, before[name]) for name, value in values(model).items())
