"""Trained rows of a table, against a table whose rows are changed one by one."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from pera_lightning.errors import InjectionError
from pera_lightning.layers import TokenRows, TokenRowsEmbedding, TokenRowsLinear

TOKENS, DIM, IDS = 11, 5, (0, 3, 10)
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def tied(dtype: torch.dtype = torch.float64, bias: bool = True) -> tuple[TokenRowsEmbedding, TokenRowsLinear]:
    """A table and a head over one weight, with rows as training would leave them."""
    table, head = nn.Embedding(TOKENS, DIM, dtype=dtype), nn.Linear(DIM, TOKENS, bias=bias, dtype=dtype)
    head.weight = table.weight
    rows = TokenRows(IDS, table.weight)
    table.weight.requires_grad_(False)
    nn.init.normal_(rows.delta)
    return TokenRowsEmbedding(table, rows), TokenRowsLinear(head, rows)


def changed_by_hand(layer: TokenRowsEmbedding) -> Tensor:
    """The weight with its rows changed one by one, in float64."""
    weight = layer.base_layer.weight.detach().double().clone()
    for place, token in enumerate(IDS):
        for column in range(DIM):
            weight[token, column] += layer.token_rows.delta[place, column].item()
    return weight


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (2, 0)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_looked_up_rows(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    table, _ = tied()
    ids = torch.randint(0, TOKENS, shape, dtype=dtype)
    torch.testing.assert_close(table(ids), changed_by_hand(table)[ids], **EXACT)
    torch.testing.assert_close(table.weight, changed_by_hand(table), **EXACT)
    assert torch.equal(table(input=ids), table(ids))


def test_ids_in_any_layout() -> None:
    table, _ = tied()
    ids = torch.arange(TOKENS * 2).remainder(TOKENS).view(2, TOKENS).T
    torch.testing.assert_close(table(ids), changed_by_hand(table)[ids], **EXACT)


@pytest.mark.parametrize("shape", [(DIM,), (4, DIM), (2, 3, DIM), (2, 0, DIM)])
@pytest.mark.parametrize("bias", [True, False])
def test_logits(shape: tuple[int, ...], bias: bool) -> None:
    table, head = tied(bias=bias)
    x = torch.randn(shape, dtype=torch.float64)
    expected = x @ changed_by_hand(table).T + (head.bias if bias else 0)
    torch.testing.assert_close(head(x), expected, **EXACT)
    torch.testing.assert_close(head.weight, changed_by_hand(table), **EXACT)


def test_gradients() -> None:
    table, head = tied()
    ids = torch.tensor([[3, 4, 3], [10, 0, 1]])

    def run(layer: nn.Module, delta: Tensor, value: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"token_rows.delta": delta}, (value,))

    def call(delta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return run(table, delta, ids), run(head, delta, x)

    x = torch.randn(3, DIM, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(call, (table.token_rows.delta, x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_starts_as_the_base_and_keeps_its_dtype(dtype: torch.dtype) -> None:
    table, head = tied(dtype)
    assert table.token_rows.delta.dtype == torch.float32
    nn.init.zeros_(table.token_rows.delta)
    ids, x = torch.arange(TOKENS), torch.randn(3, DIM, dtype=dtype)
    for layer, value in ((table, ids), (head, x)):
        assert layer(value).dtype == dtype
        assert torch.equal(layer(value), layer.base_layer(value))
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(value).dtype == layer.base_layer(value).dtype
            assert torch.equal(layer(value), layer.base_layer(value))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_merged_to_the_bits_that_were_looked_up(dtype: torch.dtype) -> None:
    """The sum of row and delta is rounded once, before and after."""
    table, head = (layer.eval() for layer in tied(dtype))
    ids, x, before = torch.arange(TOKENS), torch.randn(3, DIM, dtype=dtype), table.base_layer.weight.clone()
    looked_up, logits = table(ids), head(x)
    assert torch.equal(looked_up, changed_by_hand(table).float().to(dtype))
    head.merge()
    assert table.merged
    assert table.base_layer.weight is head.base_layer.weight
    assert torch.equal(table(ids), looked_up)
    assert torch.equal(table.weight, looked_up)
    bias = head.bias.detach().double()
    exact = x.double() @ looked_up.double().T + bias
    size = x.double().abs() @ (before.double().abs() + looked_up.double().abs()).T + bias.abs()
    for found in (logits, head(x)):
        assert ((found - exact).abs() <= torch.finfo(dtype).eps * size).all()
    assert torch.equal(head(x), head.base_layer(x))
    with pytest.raises(InjectionError, match="merged already"):
        table.merge()
    table.unmerge()
    assert torch.equal(head.base_layer.weight, before)
    assert torch.equal(table(ids), looked_up)
    with pytest.raises(InjectionError, match="not merged"):
        head.unmerge()


def test_merged_rows_are_not_trained() -> None:
    table, head = tied()
    table.merge()
    with pytest.raises(InjectionError, match="cannot be trained"):
        table(torch.arange(3))
    with pytest.raises(InjectionError, match="cannot be trained"):
        head(torch.randn(2, DIM, dtype=torch.float64))


def test_what_cannot_be_merged_is_refused_before_the_weight_changes() -> None:
    table, head = tied()
    before = table.base_layer.weight.clone()
    with torch.no_grad():
        table.token_rows.delta[1, 1] = torch.nan
    with pytest.raises(InjectionError, match=r"token_rows\.delta with NaN"):
        table.merge()
    table, head = tied()
    before = table.base_layer.weight.clone()
    # As Lightning's BitsandbytesPrecision exchanges every linear layer.
    head.base_layer = nn.Linear(DIM, TOKENS)
    with pytest.raises(InjectionError, match="do not share it any more"):
        table.merge()
    assert torch.equal(table.base_layer.weight, before)


def test_the_padding_token_is_a_token_like_others() -> None:
    """Its row stays where it is not listed, and learns where it is."""
    for listed in (True, False):
        table = nn.Embedding(TOKENS, DIM, padding_idx=2).requires_grad_(False)
        layer = TokenRowsEmbedding(table, TokenRows((1, 2) if listed else (1,), table.weight))
        assert layer.padding_idx == 2
        layer(torch.tensor([1, 2, 2])).sum().backward()
        assert layer.token_rows.delta.grad.sum(dim=1).tolist() == [DIM, 2 * DIM][: 1 + listed]


def test_copies_share_what_the_originals_share() -> None:
    both = nn.ModuleList(tied())
    ids = torch.arange(TOKENS)
    for copied in (copy.deepcopy(both), pickle.loads(pickle.dumps(both))):
        table, head = copied
        assert torch.equal(table(ids), both[0](ids))
        assert table.token_rows is head.token_rows
        assert table.token_rows.layers == (table, head)
        table.eval().merge()
        assert head.merged
        assert not both[1].merged


def test_compiled_as_one_graph() -> None:
    both = nn.Sequential(*tied(torch.float32))
    ids = torch.tensor([[1, 3, 10], [0, 0, 5]])
    compiled = torch.compile(both, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(ids), both(ids))
    rows = both[0].token_rows
    (expected,) = torch.autograd.grad(both(ids).square().sum(), rows.delta)
    (found,) = torch.autograd.grad(compiled(ids).square().sum(), rows.delta)
    torch.testing.assert_close(found, expected)


def test_gradients_of_a_frequent_token_are_summed_in_float32() -> None:
    table = nn.Embedding(4, 1, dtype=torch.bfloat16).requires_grad_(False)
    layer = TokenRowsEmbedding(table, TokenRows((1,), table.weight))
    layer(torch.ones(1000, dtype=torch.int64)).sum().backward()
    assert layer.token_rows.delta.grad.item() == 1000
