from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pera_lightning.errors import ConfigError
from pera_lightning.functional import cross_entropy
from pera_lightning.functional.cross_entropy import chunked_cross_entropy

# Of the loss and, relative to its largest entry, of the gradient.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def inputs(positions: int, hidden: int, vocabulary: int, dtype: torch.dtype, biased: bool) -> tuple[Any, ...]:
    bias = torch.randn(vocabulary).to(dtype) if biased else None
    targets = torch.randint(0, vocabulary, (positions,))
    targets[::3] = -100
    weight = torch.randn(vocabulary, hidden).to(dtype)
    return torch.randn(positions, hidden).to(dtype).requires_grad_(), weight, bias, targets


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("chunk", [1, 40, 1 << 23])
@pytest.mark.parametrize(("positions", "vocabulary"), [(2, 1), (11, 37)])
def test_loss_and_gradient(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, biased: bool, chunk: int, positions: int, vocabulary: int
) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK", chunk)
    hidden, weight, bias, targets = inputs(positions, 8, vocabulary, dtype, biased)
    loss = chunked_cross_entropy(hidden, weight, bias, targets)
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    exact = F.cross_entropy(
        F.linear(hidden.double(), weight.double(), None if bias is None else bias.double()), targets
    )
    assert abs(loss.item() - exact.item()) <= TOLERANCE[dtype] * max(1.0, exact.item())
    (expected,) = torch.autograd.grad(3 * exact, hidden)
    (found,) = torch.autograd.grad(3 * loss, hidden)
    assert found.dtype == dtype
    assert (found.double() - expected.double()).abs().max() <= TOLERANCE[dtype] * max(1e-3, expected.abs().max().item())


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("chunk", [1, 40, 1 << 23])
@pytest.mark.parametrize("frozen", [False, True])
def test_trained_rows(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, chunk: int, frozen: bool) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK", chunk)
    hidden, weight, bias, targets = inputs(11, 8, 37, dtype, biased=True)
    # Gradients of the rows also where nothing below wants one.
    hidden.requires_grad_(not frozen)
    tokens = torch.tensor([0, 5, 36])
    delta = torch.randn(3, 8).to(dtype).to(torch.promote_types(dtype, torch.float32)).requires_grad_()
    loss = chunked_cross_entropy(hidden, weight, bias, targets, rows=(tokens, delta))
    changed = weight.double().index_add(0, tokens, delta.double())
    exact = F.cross_entropy(F.linear(hidden.double(), changed, bias.double()), targets)
    assert abs(loss.item() - exact.item()) <= TOLERANCE[dtype] * max(1.0, exact.item())
    wanted = [delta] if frozen else [delta, hidden]
    for value, found, expected in zip(
        wanted, torch.autograd.grad(3 * loss, wanted), torch.autograd.grad(3 * exact, wanted), strict=True
    ):
        assert found.dtype == value.dtype
        error = (found.double() - expected.double()).abs().max()
        assert error <= TOLERANCE[dtype] * max(1e-3, expected.abs().max().item())


def test_the_logits_never_exist_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK", 500)
    hidden, weight, bias, targets = inputs(64, 8, 100, torch.float32, biased=True)
    largest: list[int] = []
    linear = F.linear

    def watched(*arguments: Tensor) -> Tensor:
        result = linear(*arguments)
        largest.append(result.numel())
        return result

    monkeypatch.setattr(F, "linear", watched)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda value: saved.append(value) or value, lambda value: value):
        loss = chunked_cross_entropy(hidden, weight, bias, targets)
    assert max(largest) == 500
    assert [value.shape for value in saved] == [hidden.shape, ()]
    loss.backward()


def test_no_target_at_all_is_nan_as_in_torch() -> None:
    hidden, weight, bias, targets = inputs(4, 8, 10, torch.float32, biased=False)
    assert chunked_cross_entropy(hidden, weight, bias, torch.full_like(targets, -100)).isnan()


def test_without_gradient() -> None:
    hidden, weight, bias, targets = inputs(4, 8, 10, torch.float32, biased=False)
    with torch.no_grad():
        loss = chunked_cross_entropy(hidden, weight, bias, targets)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, F.cross_entropy(F.linear(hidden, weight), targets).detach())


def test_autocast() -> None:
    hidden, weight, bias, targets = inputs(9, 8, 10, torch.float32, biased=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = chunked_cross_entropy(hidden, weight, bias, targets)
        expected = F.cross_entropy(F.linear(hidden, weight).float(), targets)
    torch.testing.assert_close(loss, expected)


def test_a_gradient_scaler_has_room_in_float16() -> None:
    hidden, weight, bias, targets = inputs(2048, 8, 500, torch.float16, biased=False)
    exact = F.cross_entropy(F.linear(hidden.double(), weight.double()), targets)
    (expected,) = torch.autograd.grad(exact, hidden)
    for scale in (1024.0, 65536.0):
        (found,) = torch.autograd.grad(scale * chunked_cross_entropy(hidden, weight, bias, targets), hidden)
        error = (found.double() / scale - expected.double()).abs().max() / expected.double().abs().max()
        assert error <= TOLERANCE[torch.float16]


def test_a_second_derivative_is_refused() -> None:
    hidden, weight, bias, targets = inputs(4, 8, 10, torch.float32, biased=False)
    loss = chunked_cross_entropy(hidden, weight, bias, targets)
    with pytest.raises(ConfigError, match="second derivative"):
        torch.autograd.grad(loss, hidden, create_graph=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight": torch.randn(10, 8).requires_grad_()}, "frozen"),
        ({"bias": torch.randn(10).requires_grad_()}, "frozen"),
        ({"hidden": torch.randn(2, 2, 8)}, r"\(N, hidden\)"),
        ({"targets": torch.zeros(5, dtype=torch.int64)}, "do not fit"),
        ({"weight": torch.randn(10, 7)}, "do not fit"),
    ],
)
def test_wrong_arguments(change: dict[str, Tensor], words: str) -> None:
    arguments = {
        "hidden": torch.randn(4, 8),
        "weight": torch.randn(10, 8),
        "bias": None,
        "targets": torch.zeros(4).long(),
    }
    with pytest.raises(ConfigError, match=words):
        chunked_cross_entropy(**{**arguments, **change})
