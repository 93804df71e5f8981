"""Adapters on embedding tables, against rows of the dense weight change."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from pera_lightning import (
    PeraConfig,
    adapter_disabled,
    inject_adapter,
    load_adapter,
    merge_adapter,
    quantize_model,
    remove_adapter,
    save_adapter,
)
from pera_lightning.errors import InjectionError, TargetError
from pera_lightning.layers import PeraEmbedding
from tests.support.models import tiny_llama, token_ids

TARGETS = ["embed_tokens", "q_proj"]


def adapted(dtype: torch.dtype = torch.float64, **options: object) -> PeraEmbedding:
    layer = PeraEmbedding(nn.Embedding(11, 5, padding_idx=0, dtype=dtype), PeraConfig(3, **options))
    with torch.no_grad():
        layer.pera_A.normal_()
        if layer.pera_h is not None:
            layer.pera_h.normal_()
    return layer


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (2, 0)])
@pytest.mark.parametrize(("order", "terms"), [(1, "full"), (2, "full"), (2, "square"), (3, "cross")])
def test_rows_are_those_of_the_dense_change(shape: tuple[int, ...], order: int, terms: str) -> None:
    layer = adapted(order=order, terms=terms, alpha=2.0)
    ids = torch.randint(0, 11, shape)
    expected = (layer.base_layer.weight + layer.delta_weight().T)[ids]
    torch.testing.assert_close(layer(ids), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.weight[ids], expected, rtol=1e-12, atol=1e-12)


def test_gradients() -> None:
    layer = adapted()
    ids = torch.tensor([[1, 4, 4], [7, 0, 10]])
    names, values = zip(*layer.adapter().items(), strict=True)

    def call(*parameters: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (ids,))

    assert torch.autograd.gradcheck(call, values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_starts_as_the_base_and_keeps_its_dtype(dtype: torch.dtype) -> None:
    table = nn.Embedding(11, 5, dtype=dtype)
    layer = PeraEmbedding(table, PeraConfig(3))
    ids = torch.arange(11)
    assert torch.equal(layer(ids), table(ids))
    assert layer(ids).dtype == dtype
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(ids).dtype == table(ids).dtype


def test_tokens_that_training_does_not_see_keep_their_rows() -> None:
    layer = PeraEmbedding(nn.Embedding(11, 5), PeraConfig(3))
    before = layer.base_layer.weight.clone()
    optimizer = torch.optim.SGD(layer.adapter().values(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.tensor([2, 5])).square().sum().backward()
        optimizer.step()
    changed = (layer.weight != before).any(dim=1)
    assert changed.nonzero().flatten().tolist() == [2, 5]


def test_merging() -> None:
    layer = adapted(torch.float32)
    ids, before = torch.arange(11), layer.base_layer.weight.clone()
    expected = layer(ids)
    layer.merge()
    with pytest.raises(InjectionError, match="merged"):
        layer(ids)
    layer.eval()
    torch.testing.assert_close(layer(ids), expected, rtol=1e-6, atol=1e-6)
    layer.unmerge()
    assert torch.equal(layer.base_layer.weight, before)


def test_in_a_language_model(tmp_path: Path) -> None:
    model, ids = tiny_llama(tie_word_embeddings=False), token_ids()
    fresh, plain = copy.deepcopy(model), model(input_ids=ids).logits
    report = inject_adapter(model, PeraConfig(2, target_modules=TARGETS))
    assert "model.embed_tokens" in report.adapted
    assert torch.equal(model(input_ids=ids).logits, plain)
    with torch.no_grad():
        model.model.embed_tokens.pera_A.normal_()
    trained = model(input_ids=ids).logits
    assert not torch.allclose(trained, plain)
    with adapter_disabled(model):
        assert torch.equal(model(input_ids=ids).logits, plain)
    save_adapter(model, tmp_path)
    load_adapter(fresh, tmp_path)
    assert torch.equal(fresh(input_ids=ids).logits, trained)
    assert torch.equal(pickle.loads(pickle.dumps(fresh))(input_ids=ids).logits, trained)
    merge_adapter(fresh)
    torch.testing.assert_close(fresh(input_ids=ids).logits, trained, rtol=1e-4, atol=1e-5)
    remove_adapter(model)
    assert type(model.model.embed_tokens) is nn.Embedding
    assert torch.equal(model(input_ids=ids).logits, plain)


def test_a_tied_table_is_adapted_but_not_merged() -> None:
    model = tiny_llama(tie_word_embeddings=True)
    inject_adapter(model, PeraConfig(2, target_modules=["embed_tokens"]))
    with pytest.raises(InjectionError, match="tied"):
        merge_adapter(model)


def test_only_a_list_names_embeddings() -> None:
    everything = inject_adapter(tiny_llama(), PeraConfig(2, target_modules=r"model\..*"))
    default = inject_adapter(tiny_llama(), PeraConfig(2))
    assert everything.adapted == default.adapted
    assert "model.embed_tokens" not in default.adapted


def test_over_quantised_layers() -> None:
    model = tiny_llama(hidden_size=64, intermediate_size=64)
    report = quantize_model(model, "nf4")
    assert "model.embed_tokens" not in (*report.quantized, *report.left)
    inject_adapter(model, PeraConfig(2, target_modules=TARGETS))
    assert isinstance(model.model.embed_tokens, PeraEmbedding)


class Scaled(nn.Embedding):
    """As Gemma's and BART's: the rows are scaled after they are looked up."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(ids) * 3


@pytest.mark.parametrize(
    "table", [Scaled(4, 4), nn.Embedding(4, 4, max_norm=1.0), nn.Embedding(4, 4, sparse=True), nn.EmbeddingBag(4, 4)]
)
def test_other_tables_are_refused(table: nn.Module) -> None:
    model = nn.ModuleDict({"table": table, "fc": nn.Linear(4, 4)})
    with pytest.raises(TargetError, match="table"):
        inject_adapter(model, PeraConfig(2, target_modules=["table"]))
    assert model["table"] is table
