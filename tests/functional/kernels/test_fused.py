"""`pera_linear` with kernels: the equation, what is kept, what is left out."""

from __future__ import annotations

import random
import warnings

import pytest
import torch
from torch import Tensor, nn

from pera_lightning import PeraConfig, inject_adapter
from pera_lightning.functional import expanded_rank, linear, pera_linear
from pera_lightning.functional.fused import fused
from tests.functional.fused.test_autograd import factors, saved_sizes
from tests.functional.test_property import TOLERANCE
from tests.support.models import randomise_adapter
from tests.support.operations import CountOperations
from tests.support.reference import reference_delta_weight

pytestmark = pytest.mark.usefixtures("kernels_on_cpu")


@pytest.mark.parametrize("draw", range(60))
def test_output_and_gradients(draw: int) -> None:
    """Per entry, relative to the same sum of absolute values; as tests/functional/test_property.py without kernels."""
    chance = random.Random(draw)
    rank, order = chance.randint(1, 5), chance.randint(1, 3)
    terms = chance.choice(["full", "square", "cross"])
    n, m = chance.choice([1, 3, 31, 64, 143]), chance.choice([1, 2, 17, 64, 129])
    leading = chance.choice([(), (1,), (5,), (2, 3), (0, 4), (40,)])
    dtype, path = chance.choice(list(TOLERANCE)), chance.choice(["auto", "factored", "dense"])
    factor_dtype = chance.choice([dtype, torch.promote_types(dtype, torch.float32)])
    scaling = chance.choice([1.0, 0.25, -3.0])
    torch.manual_seed(draw)
    x = (torch.randn(*leading, n) / n**0.5).to(dtype).requires_grad_()
    A, B = torch.randn(rank, n).to(factor_dtype), torch.randn(m, rank).to(factor_dtype)
    count = expanded_rank(rank, order, terms) - rank
    h = torch.randn(count).to(factor_dtype) if count else None
    values = [value.requires_grad_() for value in (A, B, h) if value is not None]
    y = pera_linear(x, A, B, h, order=order, terms=terms, scaling=scaling, path=path)
    assert type(y.grad_fn).__name__ == "FusedFunctionBackward"
    assert y.shape == (*leading, m)
    assert y.dtype == dtype
    grad = torch.randn_like(y)
    wanted = [*([x] if x.numel() else []), *values]
    found = [y, *torch.autograd.grad(y, wanted, grad)]

    def reference(scaling: float, grad: Tensor, *inputs: Tensor) -> list[Tensor]:
        inputs = tuple(value.detach().double().requires_grad_() for value in inputs)
        weight = reference_delta_weight(*inputs[1:3], inputs[3] if h is not None else None, order, terms, scaling)
        exact = inputs[0] @ weight.T
        return [exact, *torch.autograd.grad(exact, [value for value in inputs if value.numel()], grad.double())]

    exact = reference(scaling, grad, x, *values)
    size = reference(abs(scaling), grad.abs(), x.abs(), *(value.abs() for value in values))
    # The thin products round their factors once more than the dense one, and dW is rounded where it is built.
    tolerance = TOLERANCE[dtype] * (2 if path != "factored" else 1)
    for actual, right, bound in zip(found, exact, size, strict=True):
        assert actual.shape == right.shape
        assert ((actual.double() - right).abs() <= tolerance * bound + 1e-7 * (dtype == torch.float16)).all()


@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize("path", ["factored", "dense"])
def test_nothing_but_the_input_and_a_seed_is_kept(path: str, dropout: float) -> None:
    A, B, h = factors(8, 96, 80, dtype=torch.float32)
    x = torch.randn(24, 96, requires_grad=True)
    sizes = saved_sizes(lambda: pera_linear(x, A, B, h, dropout=dropout, training=True, path=path), x, A, B, h)
    assert sizes == ([8] if dropout else [])


def test_the_middle_is_kept_where_it_is_small_beside_the_input() -> None:
    for order, n, columns in ((2, 1024, 48), (1, 128, 16)):
        A, B, h = factors(8, n, 64, order, dtype=torch.float32)
        x = torch.randn(16, n)
        sizes = saved_sizes(lambda: pera_linear(x, A, B, h, order=order, path="factored"), x, A, B, h)  # noqa: B023
        assert sizes == [4 * 16 * columns]


@pytest.mark.parametrize(
    ("wanted", "products"), [("A", 2), ("B", 2), ("x", 2), ("h", 2), ("AB", 4), ("xABh", 5)], ids=str
)
def test_no_work_for_frozen_factors(wanted: str, products: int) -> None:
    A, B, h = (value.detach() for value in factors(3, 6, 5))
    x = torch.randn(40, 6, dtype=torch.float64)
    values = dict(zip("xABh", (x, A, B, h), strict=True))
    expected = torch.autograd.grad(
        pera_linear(*(value.requires_grad_() for value in values.values()), path="factored").square().sum(),
        (x, A, B, h),
    )
    for name, value in values.items():
        value.requires_grad_(name in wanted)
    y = pera_linear(x, A, B, h, path="factored").square().sum()
    with CountOperations() as count:
        y.backward()
    assert count.found["mm"] == products
    for (name, value), gradient in zip(values.items(), expected, strict=True):
        assert (value.grad is not None) == (name in wanted)
        if value.grad is not None:
            torch.testing.assert_close(value.grad, gradient)


def test_the_same_bits_every_time() -> None:
    A, B, h = factors(8, 300, 260, dtype=torch.float32)
    x = torch.randn(50, 300)
    found = [torch.autograd.grad(pera_linear(x, A, B, h).square().sum(), (A, B, h)) for _ in range(2)]
    for first, second in zip(*found, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast(dtype: torch.dtype) -> None:
    A, B, h = factors(3, 65, 33, dtype=torch.float32)
    x = torch.randn(17, 65, requires_grad=True)
    exact = x.double() @ reference_delta_weight(A, B, h, 2, "full", 1.0).T
    grad = torch.randn(17, 33)
    expected = torch.autograd.grad(exact, (x, A, B, h), grad.double())
    with torch.autocast("cpu", dtype=dtype):
        y = pera_linear(x, A, B, h, dropout=0.0)
    assert y.dtype == dtype
    y.backward(grad.to(dtype))
    for value, gradient in zip((x, A, B, h), expected, strict=True):
        assert value.grad.dtype == torch.float32
        assert (value.grad - gradient).abs().max() <= 3e-2 * gradient.abs().max()


@pytest.mark.parametrize("order", [2, 3])
def test_float16_neither_loses_small_factors_nor_overflows(order: int) -> None:
    """Products of A are 1e-6 and h is above what float16 holds; B is 1e-4 and its squares are 1e-8."""
    n, rank = 14336, 2
    for A_scale, B_scale, h_scale in ((1.0, 1.0, 3.0 * n), (1.0, 1e-3, 1e4), (n**0.5, 1.0, 1.0)):
        A, B, _ = factors(rank, n, 24, order, dtype=torch.float32)
        h = torch.randn(expanded_rank(rank, order) - rank) * h_scale
        with torch.no_grad():
            A.mul_(A_scale)
            B.mul_(B_scale)
        weight = reference_delta_weight(A, B, h, order, "full", 1.0)
        x = torch.randn(5, n).double()
        x = (x / (x @ weight.T).abs().max()).half()
        y = pera_linear(x, A, B, h, order=order, path="factored")
        exact = x.double() @ weight.T
        assert (y - exact).abs().max() <= 4e-3 * exact.abs().max()


def test_factors_of_mixed_dtypes_take_plain_operations() -> None:
    A, B, h = factors(3, 6, 5)
    y = pera_linear(torch.randn(4, 6, dtype=torch.float64), A, B.detach().float().requires_grad_(), h, path="factored")
    assert type(y.grad_fn).__name__ == "PeraFunctionBackward"


def test_very_many_columns_take_plain_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "MOST_COLUMNS", 13)
    fused.fused_call.cache_clear()
    fused.fused_form.cache_clear()
    A, B, h = factors(4, 9, 7)
    y = pera_linear(torch.randn(3, 9, dtype=torch.float64), A, B, h, path="factored")
    assert type(y.grad_fn).__name__ == "PeraFunctionBackward"
    fused.fused_call.cache_clear()
    fused.fused_form.cache_clear()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("order", [1, 2])
def test_compiled(dropout: float, order: int) -> None:
    """One graph; outputs and gradients of the eager model, and one mask in both directions."""
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 5)).train()
    inject_adapter(model, PeraConfig(4, order, dropout=dropout, target_modules=["0", "2"]))
    randomise_adapter(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.randn(3, 12, requires_grad=True)
    parameters = [x, *(parameter for parameter in model.parameters() if parameter.requires_grad)]
    found = []
    for function in (model, compiled):
        torch.manual_seed(1)
        y = function(x)
        found.append([y, *torch.autograd.grad(y.square().sum(), parameters)])
    for eager, other in zip(*found, strict=True):
        torch.testing.assert_close(eager, other)


def test_a_compiler_and_a_mode_see_operators() -> None:
    A, B, h = factors(4, 12, 8, dtype=torch.float32)
    x = torch.randn(3, 12)
    with CountOperations() as count:
        pera_linear(x, A, B, h, dropout=0.5, training=True)
    assert count.found["expand_factors"] == count.found["drop_entries"] == 1


@pytest.mark.parametrize("what", ["no compiler", "no driver"])
def test_kernels_that_do_not_work_are_said_once_and_done_without(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object) -> None:
        raise RuntimeError(f"{what}: at fault\nand more lines")

    monkeypatch.setattr("pera_lightning.functional.kernels.adapter.AdapterKernels.try_out", fails)
    fused.fused_call.cache_clear()
    fused.fused_form.cache_clear()
    fused._say_once.cache_clear()
    A, B, h = factors(2, 9, 7)
    x = torch.randn(3, 9, dtype=torch.float64)
    with pytest.warns(UserWarning, match=f"^Adapters are computed without fused kernels, .*: {what}: at fault.$"):
        y = pera_linear(x, A, B, h)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pera_linear(torch.randn(8, 9, dtype=torch.float64), A, B, h)
    torch.testing.assert_close(y, x @ reference_delta_weight(A, B, h, 2, "full", 1.0).T)
    fused.fused_call.cache_clear()
    fused.fused_form.cache_clear()
    fused._say_once.cache_clear()


def test_a_merged_and_an_evaluated_layer_agree() -> None:
    """Without gradients the operands are made by kernels too."""
    layer = nn.Sequential(nn.Linear(40, 30))
    inject_adapter(layer, PeraConfig(4, target_modules=["0"]))
    randomise_adapter(layer)
    x = torch.randn(100, 40)
    with torch.no_grad():
        trained = layer.train()(x)
        torch.testing.assert_close(layer.eval()(x), trained)
        torch.testing.assert_close(layer(x[:3]), trained[:3])


def test_linear_is_the_switch() -> None:
    """What the fixture of these tests replaces is what the package asks."""
    assert linear._kernels_serve.__name__ == "<lambda>"


def test_batches_of_gradients() -> None:
    """As of `jacobian(..., vectorize=True)`."""
    A, B, h = factors(2, 5, 3)
    x = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    y = pera_linear(x, A, B, h)
    rows = torch.eye(y.numel(), dtype=torch.float64).view(-1, *y.shape)
    found = torch.autograd.grad(y, (x, A, B, h), rows, is_grads_batched=True, retain_graph=True)
    for place, row in enumerate(rows):
        expected = torch.autograd.grad(y, (x, A, B, h), row, retain_graph=True)
        for batch, gradient in zip(found, expected, strict=True):
            torch.testing.assert_close(batch[place], gradient)


def test_a_compiled_adapter_whose_backward_pass_runs_under_autocast() -> None:
    """A kernel compiled for float32 is not to read what autocast made bfloat16."""
    torch._dynamo.reset()
    A, B, h = factors(3, 20, 9, dtype=torch.float32)
    x = torch.randn(7, 20, requires_grad=True)
    expected = torch.autograd.grad(pera_linear(x, A, B, h).square().sum(), (x, A, B, h))
    compiled = torch.compile(lambda *values: pera_linear(*values), backend="aot_eager", fullgraph=True)
    y = compiled(x, A, B, h).square().sum()
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(y, (x, A, B, h))
    for actual, right in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, right)


def test_float16_as_the_default_dtype() -> None:
    """What Trainer(precision="16-true") sets while a step runs."""
    fused.fused_call.cache_clear()
    fused.fused_form.cache_clear()
    A, B, h = factors(2, 12, 9, dtype=torch.float16)
    torch.set_default_dtype(torch.float16)
    try:
        y = pera_linear(torch.ones(3, 12, dtype=torch.float16), A, B, h)
    finally:
        torch.set_default_dtype(torch.float32)
    assert type(y.grad_fn).__name__ == "FusedFunctionBackward"
