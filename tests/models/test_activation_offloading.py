"""Activations that wait in CPU memory: the same bits come back, each storage travels once, weights never do."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from pera_lightning import PeraConfig, inject_adapter
from pera_lightning.errors import ConfigError
from pera_lightning.models import activation_offloading
from pera_lightning.models.activation_offloading import ActivationOffloading, check_offloading
from pera_lightning.models.gradient_checkpointing import enable_gradient_checkpointing
from pera_lightning.models.sequence_classifier import PeraSequenceClassifier
from tests.support.models import randomise_adapter, tiny_bert_classifier, token_ids
from tests.support.offloaded_fit import LENGTH, ROWS, WIDTH, fit, full_batch, offloading_of, wide_llama
from tests.support.pretrained import save_pretrained
from tests.support.processes import run_script

ON_CPU = "ignore:The model trains on the CPU, where activation_offloading only costs time"
BLOCK_INPUT = ROWS * LENGTH * WIDTH * 4
EVERYTHING = 1
"""Bytes from which on tensors are moved, where even scalars are to be."""


def adapted_llama(checkpointing: bool) -> Any:
    model = wide_llama()
    if checkpointing:
        enable_gradient_checkpointing(model)
    inject_adapter(model, PeraConfig(3, dropout=0.1))
    randomise_adapter(model)
    return model.train()


def loss_of(model: Any, rows: int = 2) -> Tensor:
    batch = {name: values[:rows] for name, values in full_batch().items()}
    torch.manual_seed(5)
    return model(**batch, use_cache=False).loss


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.grad for name, value in model.named_parameters() if value.requires_grad}  # type: ignore[misc]


def offloaded(module: nn.Module, smallest: int = EVERYTHING) -> ActivationOffloading:
    offloading = ActivationOffloading(smallest)
    offloading.attach(module)
    return offloading


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_same_gradients_bit_by_bit(checkpointing: bool, autocast: bool) -> None:
    found = []
    for offloads in (False, True):
        model = adapted_llama(checkpointing)
        if offloads:
            offloading = offloaded(model.model)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = loss_of(model)
        # Twice: what came back once can come back again.
        loss.backward(retain_graph=True)
        loss.backward()
        found.append(gradients(model))
    assert offloading.moved > 0
    assert all(value.abs().sum() > 0 for value in found[0].values())
    for name, value in found[0].items():
        assert torch.equal(found[1][name], value), name


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_storage_travels_once_and_weights_never(checkpointing: bool) -> None:
    model = adapted_llama(checkpointing)
    weights = {value.untyped_storage()._cdata for value in [*model.parameters(), *model.buffers()]}
    saved: dict[int, Tensor] = {}
    calls = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal calls
        leaf = tensor.requires_grad and tensor.is_leaf
        if tensor.is_floating_point() and not leaf and tensor.untyped_storage()._cdata not in weights:
            calls += 1
            saved[tensor.untyped_storage()._cdata] = tensor
        return tensor.detach()

    def body() -> Tensor:
        batch = full_batch()
        return model.model(batch["input_ids"], batch["attention_mask"], use_cache=False).last_hidden_state

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        body()
    # Inputs that the layers of a block share; with checkpointing, the last block's output at the norm.
    assert calls > len(saved)
    offloading = offloaded(model.model)
    body()
    assert offloading.moved == sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    if checkpointing:
        assert offloading.moved < 5 * BLOCK_INPUT


def test_what_shares_a_copy_shares_it_on_the_way_back(monkeypatch: pytest.MonkeyPatch) -> None:
    backs: list[int] = []
    back = activation_offloading._Copy.back

    def note(copy: Any) -> Tensor:
        tensor = back(copy)
        backs.append(tensor.data_ptr())
        return tensor

    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            inner = x * 3
            return inner.pow(3) + inner.t().pow(5)

    monkeypatch.setattr(activation_offloading._Copy, "back", note)
    module = Twice()
    offloaded(module)
    x = torch.randn(4, 4, requires_grad=True)
    out = module(x)
    # A transposed view comes back as one.
    expected = 9 * (3 * x).pow(2) + 15 * (3 * x).pow(4)
    out.sum().backward()
    torch.testing.assert_close(x.grad, expected)
    assert len(backs) == 2
    assert len(set(backs)) == 1


def test_small_and_whole_numbers_stay() -> None:
    class Pick(nn.Module):
        def forward(self, x: Tensor, places: Tensor) -> Tensor:
            return x.exp().gather(0, places)

    module = Pick()
    offloading = offloaded(module, smallest=64)
    x, places = torch.randn(16, requires_grad=True), torch.arange(16)
    module(x, places).sum().backward()
    assert offloading.moved == x.nbytes
    module(x[:15], places[:15]).sum().backward()
    assert offloading.moved == 0


def test_a_tensor_changed_in_place_is_copied_anew() -> None:
    class Changing(nn.Module):
        def forward(self, x: Tensor, factor: Tensor) -> Tensor:
            first = x * factor
            factor.add_(1)
            return first + x * factor

    module = Changing()
    offloaded(module)
    x, factor = torch.ones(4, requires_grad=True), torch.full((4,), 2.0)
    module(x, factor).sum().backward()
    assert torch.equal(x.grad, torch.full((4,), 5.0))  # type: ignore[arg-type]


@pytest.mark.parametrize("smallest", [EVERYTHING, 1000])
def test_nothing_outlives_its_graph(smallest: int) -> None:
    """Neither copies nor, where tensors stay, an operation that saves its own output."""

    class Exponential(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.exp()

    module = Exponential()
    offloaded(module, smallest)
    out = module(torch.randn(4, requires_grad=True))
    watched = weakref.ref(out)
    del out
    gc.collect()
    assert watched() is None


def test_only_while_training() -> None:
    model = adapted_llama(False)
    offloading = offloaded(model.model)
    with torch.no_grad():
        loss_of(model)
    model.eval()
    loss_of(model)
    assert offloading.moved == 0
    model.train()
    loss_of(model)
    assert offloading.moved > 0


def test_an_error_in_the_model_leaves_nothing_behind() -> None:
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ZeroDivisionError

    module = Failing()
    offloaded(module)
    with pytest.raises(ZeroDivisionError):
        module(torch.ones(1))
    x = torch.ones(4, requires_grad=True)
    saved = x.exp()
    # Its own output, not a copy.
    assert saved.grad_fn._saved_result.data_ptr() == saved.data_ptr()  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fits")
    save_pretrained(folder / "model", wide_llama())
    return folder


@pytest.mark.filterwarnings(ON_CPU, "ignore:.*does not have many workers", "ignore:You defined a `validation_step`")
def test_a_fit_ends_with_the_same_adapter(folder: Path) -> None:
    plain, moved = (fit(folder, offloading, gradient_checkpointing=True) for offloading in (False, True))
    # The second block's input, and the last norm's; the first is a leaf.
    assert (plain["moved"], moved["moved"]) == ([], [2 * BLOCK_INPUT])
    for name, value in plain["adapter"].items():
        assert torch.equal(moved["adapter"][name], value), name


def test_two_processes_end_with_the_same_adapter(folder: Path) -> None:
    run_script("tests.support.offloaded_fit", 2, folder, processes=2)
    for rank in range(2):
        plain, moved = torch.load(folder / f"{rank}.pt", weights_only=True)
        assert (plain["moved"], moved["moved"]) == ([], [2 * BLOCK_INPUT])
        for name, value in plain["adapter"].items():
            assert torch.equal(moved["adapter"][name], value), name


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:You defined a `validation_step`")
def test_a_fit_on_the_cpu_says_that_nothing_is_gained(folder: Path) -> None:
    with pytest.warns(UserWarning, match="activation_offloading only costs time"):
        fit(folder, True)


def test_a_classifier_too(tmp_path: Path) -> None:
    folder = save_pretrained(tmp_path, tiny_bert_classifier())
    module = PeraSequenceClassifier(folder, num_labels=2, activation_offloading=True)
    module.configure_model()
    [offloading] = offloading_of(module)  # type: ignore[arg-type]
    offloading._smallest = EVERYTHING
    module.model.train()  # type: ignore[union-attr]
    module.model(token_ids())  # type: ignore[misc]
    assert offloading.moved > 0


@pytest.mark.parametrize("strategy", [FSDPStrategy, ModelParallelStrategy])
def test_sharded_weights_are_refused(strategy: Any) -> None:
    trainer: Any = SimpleNamespace(strategy=strategy())
    with pytest.raises(ConfigError, match=strategy.__name__):
        check_offloading(trainer)
