"""The autograd Function: what it keeps, what it leaves out, and that its gradients are the right ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from pera_lightning.functional import expanded_rank, pera_linear
from pera_lightning.functional.call import Options
from pera_lightning.functional.fused.dropout_mask import draw_seed, keep_mask
from pera_lightning.functional.linear import add_adapter
from tests.support.operations import CountOperations
from tests.support.reference import reference_delta_weight

Factors = tuple[Tensor, Tensor, Tensor]


def factors(rank: int, n: int, m: int, order: int = 2, dtype: torch.dtype = torch.float64) -> Factors:
    count = expanded_rank(rank, order) - rank
    drawn = (torch.randn(rank, n) / n**0.5, torch.randn(m, rank) / m**0.5, torch.randn(count))
    return tuple(value.to(dtype).requires_grad_() for value in drawn)  # type: ignore[return-value]


def saved_sizes(forward: Callable[[], Tensor], *own: Tensor) -> list[int]:
    """Bytes of every storage kept for the backward pass but the given tensors'."""
    known = {tensor.untyped_storage().data_ptr() for tensor in own}
    kept: dict[int, int] = {}
    alive = []

    def pack(value: Tensor) -> Tensor:
        alive.append(value.detach())
        storage = value.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return alive[-1]

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        alive.append(forward())
    return sorted(kept.values())


@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize("path", ["auto", "factored", "dense", "implicit"])
def test_nothing_but_the_input_is_kept(path: str, dropout: float) -> None:
    """Exact: x, A, B and h, all of them the caller's own."""
    tokens, n, m, rank = 24, 96, 80, 8
    A, B, h = factors(rank, n, m, dtype=torch.float32)
    x = torch.randn(tokens, n, requires_grad=True)
    sizes = saved_sizes(lambda: pera_linear(x, A, B, h, dropout=dropout, training=True, path=path), x, A, B, h)
    assert sizes == []
    # A caller's input that is no parameter of ours counts once, as itself.
    copy = x.detach().clone().requires_grad_()
    sizes = saved_sizes(lambda: pera_linear(copy, A, B, h, dropout=dropout, training=True, path=path), A, B, h)
    assert sizes == [4 * tokens * n]


def test_the_middle_is_kept_where_it_is_small_beside_the_input() -> None:
    tokens, n, m, rank = 16, 1024, 64, 8
    A, B, h = factors(rank, n, m, dtype=torch.float32)
    x = torch.randn(tokens, n)
    columns = expanded_rank(rank)
    assert saved_sizes(lambda: pera_linear(x, A, B, h, path="factored"), x, A, B, h) == [4 * tokens * columns]


def test_a_view_is_kept_as_what_it_views() -> None:
    A, B, h = factors(2, 6, 5)
    x = torch.randn(3, 4, 6, dtype=torch.float64)
    assert saved_sizes(lambda: pera_linear(x.transpose(0, 1), A, B, h), x, A, B, h) == []


@pytest.mark.parametrize("path", ["factored", "dense"])
@pytest.mark.parametrize("wanted", ["x", "A", "B", "h"])
def test_each_gradient_alone(path: str, wanted: str) -> None:
    """A frozen factor gets nothing, and what is asked for does not depend on what is not."""
    A, B, h = factors(3, 6, 5)
    values = {"x": torch.randn(4, 6, dtype=torch.float64, requires_grad=True), "A": A, "B": B, "h": h}
    expected = torch.autograd.grad(pera_linear(**values, path=path).pow(2).sum(), values[wanted])[0]
    alone = {name: value.detach().requires_grad_(name == wanted) for name, value in values.items()}
    pera_linear(**alone, path=path).pow(2).sum().backward()
    assert {name for name, value in alone.items() if value.grad is not None} == {wanted}
    torch.testing.assert_close(alone[wanted].grad, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("wanted", "products"), [("A", 2), ("B", 2), ("x", 2), ("h", 2), ("AB", 4), ("xABh", 5)], ids=str
)
def test_no_work_for_frozen_factors(wanted: str, products: int) -> None:
    """Large matrix products of the backward pass: none for a gradient that nobody asks for."""
    A, B, h = (value.detach() for value in factors(3, 6, 5))
    x = torch.randn(40, 6, dtype=torch.float64)
    for name, value in zip("xABh", (x, A, B, h), strict=True):
        value.requires_grad_(name in wanted)
    y = pera_linear(x, A, B, h, path="factored").sum()
    with CountOperations() as count:
        y.backward()
    # Those of `fold` are of 0/1 matrices, with addmm.
    assert count.found["mm"] == products


@pytest.mark.parametrize("path", ["auto", "factored", "dense", "implicit"])
def test_zero_tokens_give_zero_gradients(path: str) -> None:
    A, B, h = factors(3, 6, 5)
    x = torch.randn(0, 6, dtype=torch.float64, requires_grad=True)
    pera_linear(x, A, B, h, path=path, dropout=0.5, training=True).sum().backward()
    for value in (x, A, B, h):
        assert value.grad is not None
        assert not value.grad.any()


@pytest.mark.parametrize("path", ["auto", "factored", "dense", "implicit"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_gradients_of_gradients(path: str, dropout: float) -> None:
    A, B, h = factors(2, 4, 3)
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)

    def function(*values: Tensor) -> Tensor:
        torch.manual_seed(3)
        return pera_linear(*values, path=path, dropout=dropout, training=True)

    assert torch.autograd.gradcheck(function, (x, A, B, h))
    assert torch.autograd.gradgradcheck(function, (x, A, B, h))


@pytest.mark.parametrize("path", ["auto", "factored", "dense", "implicit"])
def test_dropout_is_the_same_in_both_directions(path: str) -> None:
    """Output and all gradients equal those with the mask applied by hand."""
    A, B, h = factors(3, 40, 20)
    x = torch.randn(30, 40, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(5)
    mask = keep_mask(draw_seed(), x.shape, x.device, x.dtype, 0.25) / 0.75
    assert (mask == 0).any()
    torch.manual_seed(5)
    y = pera_linear(x, A, B, h, dropout=0.25, training=True, path=path)
    weight = reference_delta_weight(A, B, h, 2, "full", 1.0)
    torch.testing.assert_close(y, (x * mask) @ weight.T)
    grad = torch.randn_like(y)
    expected = torch.autograd.grad((x * mask) @ weight.T, (x, A, B, h), grad)
    torch.testing.assert_close(torch.autograd.grad(y, (x, A, B, h), grad), expected)


def test_dropout_only_while_training() -> None:
    A, B, h = factors(2, 40, 3)
    x = torch.ones(50, 40, dtype=torch.float64)
    assert torch.equal(pera_linear(x, A, B, h, dropout=0.5), pera_linear(x, A, B, h))
    assert not torch.equal(pera_linear(x, A, B, h, dropout=0.5, training=True), pera_linear(x, A, B, h))
    with torch.no_grad():
        assert not torch.equal(pera_linear(x, A, B, h, dropout=0.5, training=True), pera_linear(x, A, B, h))


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_repeats_the_mask(reentrant: bool) -> None:
    A, B, h = factors(3, 40, 20)
    x = torch.randn(8, 40, dtype=torch.float64, requires_grad=True)

    outputs = []

    def function(x: Tensor) -> Tensor:
        y = torch.nn.functional.dropout(pera_linear(x, A, B, h, dropout=0.5, training=True).tanh())
        outputs.append(y.detach())
        return y

    torch.manual_seed(5)
    expected = torch.autograd.grad(function(x).sum(), (x, A, B, h))
    torch.manual_seed(5)
    checkpoint(function, x, use_reentrant=reentrant).sum().backward()
    # Recomputation may stop before the last operation.
    assert len(outputs) >= (3 if reentrant else 2)
    for output in outputs[1:]:
        assert torch.equal(output == 0, outputs[0] == 0)
        torch.testing.assert_close(output, outputs[0])
    for value, gradient in zip((x, A, B, h), expected, strict=True):
        torch.testing.assert_close(value.grad, gradient)


# Of bfloat16: 8 bits in each of a few products and sums, relative to the largest entry.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
@pytest.mark.parametrize("path", ["auto", "factored", "dense", "implicit"])
@pytest.mark.parametrize("backward_inside", [True, False])
def test_gradients_under_autocast(dtype: torch.dtype, tolerance: float, path: str, backward_inside: bool) -> None:
    A, B, h = factors(3, 65, 33, dtype=torch.float32)
    x = torch.randn(17, 65, requires_grad=True)
    weight = reference_delta_weight(A, B, h, 2, "full", 1.0)
    exact = x.double() @ weight.T
    grad = torch.randn(17, 33)
    expected = torch.autograd.grad(exact, (x, A, B, h), grad.double())
    with torch.autocast("cpu", dtype=dtype):
        y = pera_linear(x, A, B, h, path=path)
        assert y.dtype == dtype
        if backward_inside:
            y.backward(grad.to(dtype))
    if not backward_inside:
        y.backward(grad.to(dtype))
    for value, gradient in zip((x, A, B, h), expected, strict=True):
        assert value.grad.dtype == value.dtype == torch.float32
        assert (value.grad - gradient).abs().max() <= tolerance * gradient.abs().max()


@pytest.mark.parametrize("path", ["factored", "dense"])
def test_small_factors_survive_training_in_float16(path: str) -> None:
    """B is 1e-4 and its squares 1e-8, which float16 does not have."""
    A, B, h = factors(3, 65, 33, dtype=torch.float32)
    with torch.no_grad():
        B.mul_(1e-3)
        h.mul_(1e4)
    x = torch.randn(17, 65).half().requires_grad_()
    y = pera_linear(x, A, B, h, path=path)
    exact = x.double() @ reference_delta_weight(A, B, h, 2, "full", 1.0).T
    assert (y - exact).abs().max() <= 4e-3 * exact.abs().max()
    grad = torch.randn(17, 33).half()
    expected = torch.autograd.grad(exact, (x, A, B, h), grad.double())
    y.backward(grad)
    for value, gradient in zip((x, A, B, h), expected, strict=True):
        assert (value.grad - gradient).abs().max() <= 4e-3 * gradient.abs().max()


@pytest.mark.parametrize("path", ["auto", "factored", "dense", "implicit"])
@pytest.mark.parametrize("with_gradient", [True, False])
@pytest.mark.parametrize("order", [2, 3])
def test_large_coefficients_do_not_overflow_float16(path: str, with_gradient: bool, order: int) -> None:
    """As of coefficient_scale="auto" in a wide layer: products of A are 1e-6 and h is above what float16 holds."""
    tokens, n, m, rank = 5, 14336, 24, 4
    A, B, _ = factors(rank, n, m, order, dtype=torch.float32)
    h = (torch.randn(expanded_rank(rank, order) - rank) * 3 * n).requires_grad_()
    x = torch.randn(tokens, n).half()
    with torch.set_grad_enabled(with_gradient):
        y = pera_linear(x, A, B, h, order=order, path=path)
    exact = x.double() @ reference_delta_weight(A, B, h, order, "full", 1.0).T
    assert y.dtype == torch.float16
    assert (y - exact).abs().max() <= 4e-3 * exact.abs().max()


@pytest.mark.parametrize("path", ["auto", "factored", "dense", "implicit"])
def test_shapes_can_be_worked_out_without_memory(path: str) -> None:
    A, B, h = (value.detach().to("meta").requires_grad_() for value in factors(3, 6, 5))
    x = torch.randn(2, 7, 6, dtype=torch.float64, device="meta")
    y = pera_linear(x, A, B, h, path=path, dropout=0.5, training=True)
    assert y.shape == (2, 7, 5)
    y.sum().backward()
    assert A.grad.shape == A.shape


def test_a_fake_mode_leaves_nothing_behind() -> None:
    A, B, h = factors(7, 9, 8)
    x = torch.randn(4000, 9, dtype=torch.float64)
    with FakeTensorMode() as mode:
        pera_linear(*(mode.from_tensor(value) for value in (x, A, B, h)))
    y = pera_linear(x, A, B, h)
    assert type(y) is Tensor
    y.sum().backward()
    assert type(A.grad) is Tensor


@pytest.mark.parametrize("path", ["auto", "factored", "dense", "implicit"])
def test_function_transforms(path: str) -> None:
    """Gradients per sample, as privacy and influence methods take them."""
    A, B, h = (value.detach() for value in factors(3, 6, 5))
    x = torch.randn(4, 6, dtype=torch.float64)

    def loss(A: Tensor, x: Tensor) -> Tensor:
        return pera_linear(x, A, B, h, path=path).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(A, x)
    for row, gradient in zip(x, found, strict=True):
        inputs = A.clone().requires_grad_()
        torch.testing.assert_close(gradient, torch.autograd.grad(loss(inputs, row), inputs)[0])


@pytest.mark.parametrize("path", ["factored", "dense", "implicit"])
def test_float16_factors_under_large_constants(path: str) -> None:
    """As of coefficient_scale="auto" at order 3 in a wide layer: more than float16 holds, times zeros."""
    n = 11008
    A, B, h = factors(4, n, 16, 3, dtype=torch.float16)
    options = Options(3, "full", 2.0, ((3 * n) ** 0.5, 3.0 * n), path=path)  # type: ignore[arg-type]
    with torch.no_grad():
        B.zero_()
        h.zero_()
    y = add_adapter(None, torch.randn(3, n).half(), A, B, h, options)
    assert not y.any()
    for gradient in torch.autograd.grad(y.float().sum(), (A, B, h)):
        assert gradient.isfinite().all()


def test_float16_gradients_that_overflow_on_their_way() -> None:
    """Large between the weights and the members, and not before nor after."""
    n, order = 4096, 3
    A, B, h = factors(4, n, 16, order, dtype=torch.float16)
    with torch.no_grad():
        B.copy_(torch.randn(16, 4) * 0.3)
        h.mul_(0.3)
    x = torch.randn(100, n).half()
    options = Options(order, "full", 1.0, (1000.0, 1000.0), path="factored")
    found = torch.autograd.grad(add_adapter(None, x, A, B, h, options).float().sum(), A)[0]
    exact = [value.detach().double().requires_grad_() for value in (A, B, h)]
    expected = torch.autograd.grad(add_adapter(None, x.double(), *exact, options).sum(), exact[0])[0]
    assert (found - expected).abs().max() <= 5e-3 * expected.abs().max()
