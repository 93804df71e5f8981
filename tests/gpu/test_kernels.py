"""The kernels on a GPU against plain operations on it, and what only a GPU can show of them."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from pera_lightning import PeraConfig, inject_adapter
from pera_lightning.functional import expanded_rank, linear, pera_linear
from pera_lightning.functional.kernels import unavailable_reason
from tests.functional.kernels.philox import reference_mask
from tests.support.models import randomise_adapter

# Relative norms: a rounding of the products and one of the sums in half precision; float32 may go through TF32 nowhere.
ERRORS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
SHAPES = [(4, 512, 768, 300), (16, 1023, 515, 77), (32, 256, 256, 4096), (1, 64, 32, 1), (64, 384, 130, 50)]


@pytest.fixture(autouse=True)
def _kernels_are_there(cuda: torch.device) -> None:
    assert unavailable_reason(cuda) is None


def operands(
    device: torch.device, shape: tuple[int, int, int, int], order: int, dtypes: tuple[torch.dtype, ...]
) -> list[Tensor]:
    rank, n, m, tokens = shape
    dtype, factor_dtype = dtypes
    A, B = torch.randn(rank, n) / n**0.5, torch.randn(m, rank) * 0.2
    h = torch.randn(expanded_rank(rank, order) - rank)
    found = [torch.randn(tokens, n).to(dtype), *(value.to(factor_dtype) for value in (A, B, h))]
    return [value.to(device).requires_grad_() for value in found]


def passes(values: list[Tensor], order: int, path: str, dropout: float = 0.0) -> tuple[str, list[Tensor]]:
    """Name of the Function, the output and the gradients."""
    torch.manual_seed(3)
    y = pera_linear(*values, order=order, path=path, dropout=dropout, training=True)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    return type(y.grad_fn).__name__, [y, *torch.autograd.grad(y, values, grad)]


@pytest.mark.parametrize("path", ["auto", "factored", "dense"])
@pytest.mark.parametrize("dtype", list(ERRORS))
@pytest.mark.parametrize("half_factors", [False, True])
@pytest.mark.parametrize(("shape", "order"), [*itertools.product(SHAPES, [2]), (SHAPES[0], 3), ((8, 129, 65, 40), 3)])
def test_like_plain_operations(
    cuda: torch.device,
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[int, int, int, int],
    order: int,
    dtype: torch.dtype,
    half_factors: bool,
    path: str,
) -> None:
    factor_dtype = dtype if half_factors else torch.promote_types(dtype, torch.float32)
    values = operands(cuda, shape, order, (dtype, factor_dtype))
    name, found = passes(values, order, path)
    assert name == "FusedFunctionBackward"
    monkeypatch.setattr(linear, "_kernels_serve", lambda x, options: False)
    exact = [value.detach().double().requires_grad_() for value in values]
    name, expected = passes(exact, order, "factored")
    assert name == "PeraFunctionBackward"
    for actual, right in zip(found, expected, strict=True):
        assert actual.isfinite().all()
        assert (actual.double() - right).norm() <= ERRORS[dtype] * right.norm() + 1e-30


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_every_time(cuda: torch.device, dtype: torch.dtype) -> None:
    values = operands(cuda, (16, 4096, 1024, 2048), 2, (dtype, torch.float32))
    first = passes(values, 2, "factored", 0.1)[1]
    for _ in range(3):
        for one, other in zip(first, passes(values, 2, "factored", 0.1)[1], strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_mask(cuda: torch.device, dtype: torch.dtype) -> None:
    from pera_lightning.functional.kernels.adapter import drop

    seed = torch.tensor([12345678901234567])
    found = drop(torch.ones(37, 1023, dtype=dtype, device=cuda), seed.to(cuda), 3277, torch.float32)
    assert torch.equal(found.cpu().double(), reference_mask(int(seed), (37, 1023), 3277))


def test_more_entries_than_32_bits_count(cuda: torch.device) -> None:
    """The mask goes on where a 32-bit number would begin anew."""
    from pera_lightning.functional.kernels.adapter import drop

    count = (1 << 31) + 4096
    if torch.cuda.mem_get_info(cuda)[0] < 3 * count:
        pytest.skip("needs 6 GB of free GPU memory")
    x = torch.ones(count, dtype=torch.bfloat16, device=cuda)
    found = drop(x, torch.tensor([5], device=cuda), 32768, torch.bfloat16, out=x)
    last = found[-4096:].float().cpu()
    assert 0.4 < last.mean() < 0.6
    assert not torch.equal(last, found[:4096].float().cpu())


def test_views_and_the_second_call_of_a_shape(cuda: torch.device) -> None:
    """Tensors that start at any address, and what is kept for those that do not."""
    whole = torch.randn(65, 520, device=cuda)
    A, B, h = operands(cuda, (8, 512, 256, 1), 2, (torch.float32, torch.float32))[1:]
    for first in (0, 1, 4, 0, 3):
        x = whole[:, first : first + 512]
        exact = pera_linear(x.double(), A.double(), B.double(), h.double())
        torch.testing.assert_close(pera_linear(x, A, B, h).double(), exact, rtol=1e-4, atol=1e-4)
        shifted = torch.cat([A.flatten().new_zeros(first), A.detach().flatten()])[first:].view(A.shape)
        torch.testing.assert_close(pera_linear(x, shifted, B, h), pera_linear(x, A, B, h))


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_compiled(cuda: torch.device, dropout: float) -> None:
    model = nn.Sequential(nn.Linear(128, 256), nn.Tanh(), nn.Linear(256, 64)).to(cuda).train()
    inject_adapter(model, PeraConfig(8, dropout=dropout, target_modules=["0", "2"]))
    randomise_adapter(model)
    compiled = torch.compile(model, fullgraph=True)
    x = torch.randn(32, 128, device=cuda, requires_grad=True)
    parameters = [x, *(parameter for parameter in model.parameters() if parameter.requires_grad)]
    for _ in range(2):
        found = []
        for function in (model, compiled):
            torch.manual_seed(1)
            y = function(x)
            found.append([y, *torch.autograd.grad(y.square().sum(), parameters)])
        if dropout == 0.0:
            for eager, other in zip(*found, strict=True):
                torch.testing.assert_close(eager, other, rtol=1e-4, atol=1e-4)
    # Linear in x under one mask, so that the gradient is the slope.
    linear_part = torch.compile(lambda x: model[0](x), fullgraph=True)
    y = linear_part(x)
    grad = torch.randn_like(y)
    (grad_x,) = torch.autograd.grad(y, x, grad)
    assert ((grad * (y - model[0].base_layer.bias)).sum() - (x * grad_x).sum()).abs() < 1e-2


def test_a_training_step_starts_kernels_and_no_operator(cuda: torch.device) -> None:
    """What a profiler sees: the three kernels by their names, and none of torch's operators around them."""
    from torch.profiler import ProfilerActivity, profile

    values = operands(cuda, (8, 512, 512, 64), 2, (torch.bfloat16, torch.float32))
    passes(values, 2, "factored", 0.1)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        passes(values, 2, "factored", 0.1)
        torch.cuda.synchronize()
    names = {event.key for event in seen.key_averages()}
    assert {"expand_kernel", "fold_kernel", "drop_kernel"} <= names
    assert not any(name.startswith("pera_lightning::") for name in names)
