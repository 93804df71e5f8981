"""Weights tied by their memory and not as one parameter: a merge of one silently changed the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pera_lightning import (
    AdapterSet,
    PeraConfig,
    adapter_disabled,
    inject_adapter,
    merge_adapter,
    quantize_model,
    remove_adapter,
)
from pera_lightning.errors import InjectionError
from pera_lightning.injection.shared_memory import SharedMemory
from tests.support.models import randomise_adapter


class Tied(nn.Module):
    """A head that is to give the scores of the tokens in a table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(8, 8)
        self.mid = nn.Linear(8, 8)
        self.head = nn.Linear(8, 8, bias=False)
        self.alias: Tensor | None = None

    def forward(self, ids: Tensor) -> Tensor:
        state = torch.tanh(self.mid(self.table(ids)))
        return self.head(state) if self.alias is None else self.head(state) + state @ self.alias


def by_parameter(model: Tied) -> None:
    model.head.weight = model.table.weight


def by_data(model: Tied) -> None:
    model.head.weight.data = model.table.weight.data


def by_a_second_parameter(model: Tied) -> None:
    model.head.weight = nn.Parameter(model.table.weight.detach())


def transposed(model: Tied) -> None:
    model.head.weight = nn.Parameter(model.table.weight.detach().t())


def by_one_row(model: Tied) -> None:
    memory = torch.randn(15, 8)
    model.table.weight.data, model.head.weight.data = memory[:8], memory[7:]


def by_columns(model: Tied) -> None:
    memory = torch.randn(8, 15)
    model.table.weight.data, model.head.weight.data = memory[:, :8], memory[:, 7:]


def by_a_buffer(model: Tied) -> None:
    del model.alias
    model.register_buffer("alias", model.head.weight.detach())


def by_a_variable(model: Tied) -> None:
    model.alias = model.head.weight.detach()


REGISTERED = [by_parameter, by_data, by_a_second_parameter, transposed, by_one_row, by_columns, by_a_buffer]
IDS = torch.arange(8)


def adapted(tie: Callable[[Tied], None], *targets: str, **options: Any) -> Tied:
    torch.manual_seed(0)
    model = Tied().eval()
    tie(model)
    inject_adapter(model, PeraConfig(3, target_modules=list(targets or ["head"]), **options))
    randomise_adapter(model, 0.3)
    return model


@pytest.mark.parametrize("tie", [*REGISTERED, by_a_variable])
def test_a_layer_is_merged_without_what_it_is_tied_to(tie: Callable[[Tied], None]) -> None:
    model = adapted(tie, "head", "mid")
    with torch.no_grad():
        expected, weights = model(IDS), {key: value.clone() for key, value in model.state_dict().items()}
        with adapter_disabled(model):
            base = model(IDS)
        for layer in (model.head, model.mid):
            layer.merge()
        assert (model(IDS) - expected).abs().max() < 1e-5 < (base - expected).abs().max()
        with adapter_disabled(model):
            assert torch.equal(model(IDS), base)
        for layer in (model.head, model.mid):
            layer.unmerge()
        assert torch.equal(model(IDS), expected)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    # The tie is what it was.
    with torch.no_grad():
        model.head.base_layer.weight.fill_(9.0)
    assert (model.alias if tie in (by_a_buffer, by_a_variable) else model.table.weight).eq(9.0).any()


@pytest.mark.parametrize("tie", REGISTERED)
@pytest.mark.parametrize("targets", [("head",), ("table", "head"), ("head", "mid")])
@pytest.mark.parametrize("merged", [False, True])
def test_a_merge_for_good_is_refused(tie: Callable[[Tied], None], targets: tuple[str, ...], merged: bool) -> None:
    model = adapted(tie, *targets)
    if merged:
        model.head.merge()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(InjectionError, match="tied to another module"):
        merge_adapter(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.head.merged == merged


def test_a_merge_for_good_leaves_variables_alone() -> None:
    model = adapted(by_a_variable, "head", "mid")
    with torch.no_grad():
        expected = model(IDS)
        assert (merge_adapter(model)(IDS) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("across", [False, True])
def test_parts_of_a_fused_weight_are_merged(across: bool) -> None:
    memory = torch.randn(8, 24) if across else torch.randn(24, 8)
    model = nn.ModuleList(nn.Linear(8, 8) for _ in range(3)).eval()
    for layer, part in zip(model, memory.chunk(3, 1 if across else 0), strict=True):
        layer.weight.data = part
    inject_adapter(model, PeraConfig(2, target_modules=["0", "1"]))
    randomise_adapter(model, 0.3)
    x = torch.randn(4, 8)
    expected = [layer(x).detach() for layer in model]
    for layer, output in zip(merge_adapter(model), expected, strict=True):
        assert (layer(x) - output).abs().max() < 1e-5


@pytest.mark.parametrize("tie", [by_data, by_a_second_parameter, transposed, by_one_row])
def test_token_rows(tie: Callable[[Tied], None]) -> None:
    model = adapted(tie, "mid", trainable_tokens={"table": [3, 7]})
    with torch.no_grad():
        expected = model(IDS)
        model.table.merge()
        assert (model(IDS) - expected).abs().max() < 1e-5
        model.table.unmerge()
        assert torch.equal(model(IDS), expected)
    with pytest.raises(InjectionError, match="'table' also belongs to head"):
        merge_adapter(model)


def test_one_parameter_in_two_quantised_layers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(3)), nn.Linear(64, 3)).eval()
    quantize_model(model, "nf4")
    model[1].weight = model[0].weight
    inject_adapter(model, PeraConfig(2, target_modules=["1"]))
    randomise_adapter(model, 0.3)
    x = torch.randn(4, 64)
    with torch.no_grad():
        first, expected = model[0](x), model(x)
        model[1].merge("requantized")
        assert torch.equal(model[0](x), first)
        model[1].unmerge()
        assert torch.equal(model(x), expected)
    with pytest.raises(InjectionError, match="tied to another module"):
        merge_adapter(model, into="requantized")


def test_an_adapter_of_a_set() -> None:
    model = adapted(by_data)
    adapters = AdapterSet(model, name="one")
    with torch.no_grad():
        expected = model(IDS)
        adapters.switch(None)
        adapters.switch("one")
        model.head.merge()
        assert (model(IDS) - expected).abs().max() < 1e-5
        model.head.unmerge()
        with pytest.raises(InjectionError, match="tied to another module"):
            merge_adapter(model)


def test_tensors_without_memory() -> None:
    with torch.device("meta"):
        model = Tied()
        assert not any(SharedMemory(model).owners(part.weight, besides=[part]) for part in (model.table, model.head))
        by_data(model)
        assert SharedMemory(model).owners(model.head.weight, besides=[model.head]) == ["table"]
    model = nn.Sequential(nn.Linear(2, 2))
    model.register_parameter("lazy", nn.UninitializedParameter())
    model.register_buffer("sparse", torch.eye(2).to_sparse())
    assert not SharedMemory(model).owners(model[0].weight, besides=[model[0]])


HUGE = [(torch.float16, 65000.0), (torch.bfloat16, 3.3e38), (torch.float32, 3.3e38)]


@pytest.mark.parametrize(("dtype", "size"), HUGE)
@pytest.mark.parametrize("merge", [merge_adapter, lambda model: model[1].merge()])
def test_sums_beyond_the_dtype(dtype: torch.dtype, size: float, merge: Callable[[nn.Module], object]) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).to(dtype)
    model[1].weight.data.fill_(size)
    inject_adapter(model, PeraConfig(1, 1, target_modules=["0", "1"]))
    with torch.no_grad():
        model[1].pera_A.fill_(1.0)
        model[1].pera_B.fill_(-size / 16)
        expected = model[1].weight.clone()
        # Smaller sums are right.
        model[1].merge()
        torch.testing.assert_close(model[1].weight, expected)
        model[1].unmerge()
        model[1].pera_B.neg_()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(InjectionError, match="do not fit their dtype"):
        merge(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    # What was infinite stays so.
    with torch.no_grad():
        model[1].base_layer.weight.fill_(-torch.inf)
        model[1].pera_B.zero_()
    assert merge(model) is None or model[1].weight.isneginf().all()


def test_rows_beyond_the_dtype() -> None:
    model = adapted(lambda own: own.half() and None, "mid", trainable_tokens={"table": [3, 7]})
    with torch.no_grad():
        model.table.token_rows.delta.fill_(7e4)
    for merge in (model.table.merge, lambda: merge_adapter(model)):
        with pytest.raises(InjectionError, match="do not fit their dtype"):
            merge()
    assert not model.table.merged


def test_sums_beyond_float16_in_eight_bits() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 4)).half()
    quantize_model(model, "int8")
    inject_adapter(model, PeraConfig(1, 1, target_modules=["0"]))
    with torch.no_grad():
        model[0].pera_A.fill_(300.0)
        model[0].pera_B.fill_(300.0)
    for into in ("auto", "requantized"):
        with pytest.raises(InjectionError, match="do not fit their dtype"):
            merge_adapter(model, into=into)
        with pytest.raises(InjectionError, match="do not fit their dtype"):
            model[0].merge(into)


@pytest.mark.parametrize("tie", [by_data, by_a_second_parameter, transposed, by_one_row, by_a_buffer])
def test_a_module_trained_whole_is_taken_out_of_what_it_is_tied_to(tie: Callable[[Tied], None]) -> None:
    torch.manual_seed(0)
    model = Tied().eval()
    tie(model)
    with torch.no_grad():
        base = model(IDS)
        inject_adapter(model, PeraConfig(3, target_modules=["mid"], modules_to_save=["head"]))
        randomise_adapter(model, 0.3)
        model.head.weight += 1.0
        trained, values = model(IDS), {key: value.clone() for key, value in model.state_dict().items()}
        with adapter_disabled(model):
            assert torch.equal(model(IDS), base)
        assert torch.equal(model(IDS), trained)
        adapters = AdapterSet(model, name="one")
        adapters.switch(None)
        assert torch.equal(model(IDS), base)
        adapters.switch("one")
        assert torch.equal(model(IDS), trained)
        assert all(torch.equal(value, values[key]) for key, value in model.state_dict().items())
        assert torch.equal(remove_adapter(model)(IDS), base)
