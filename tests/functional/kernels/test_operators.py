"""The operators that stand for the kernels: gradients, shapes without memory, what torch asks of an operator."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pera_lightning.functional.fused.fused_operator
from pera_lightning import PeraConfig, inject_adapter
from pera_lightning.functional import expanded_rank
from pera_lightning.functional.kernels import fold, operators

FORMS: list[tuple[int, str]] = [(1, "full"), (2, "full"), (2, "square"), (2, "cross"), (3, "full")]


def values(order: int, terms: Any, dtype: torch.dtype = torch.float64) -> list[Tensor | None]:
    """A, B and h."""
    rank = 2
    count = expanded_rank(rank, order, terms) - rank
    shapes = [(rank, 5), (3, rank), (count,)]
    A, B, h = (torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes)
    return [A, B, h if count else None]


def form(order: int, terms: str) -> tuple[int, str, float, list[float]]:
    return order, terms, 0.5, [2.0, 3.0][: order - 1]


@pytest.mark.parametrize(("order", "terms"), FORMS)
def test_gradients_of_the_expansion(order: int, terms: str) -> None:
    A, B, h = values(order, terms)

    def function(A: Tensor, B: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
        return operators.expand_factors(A, B, h, None, *form(order, terms), torch.float64)

    # All entries at once in a random direction where there are many: the interpreter takes its time.
    assert torch.autograd.gradcheck(function, (A, B, h), fast_mode=order > 1)


def test_gradients_of_dropout() -> None:
    x, seed = torch.randn(3, 7, dtype=torch.float64, requires_grad=True), torch.tensor([5])
    assert torch.autograd.gradcheck(lambda x: operators.drop_entries(x, seed, 20000, torch.float64), (x,))


@pytest.mark.parametrize("path", ["factored", "dense"])
@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize(("order", "terms"), FORMS)
def test_gradients_of_the_adapter(order: int, terms: str, dropout: float, path: str) -> None:
    A, B, h = values(order, terms)
    x, output = (torch.randn(2, n, dtype=torch.float64, requires_grad=True) for n in (5, 3))
    seed = torch.tensor([5]) if dropout else None

    def function(*tensors: Tensor | None) -> Tensor:
        call = (*form(order, terms), torch.float64, dropout, path, path)
        return torch.ops.pera_lightning.add_adapter(*tensors, seed, *call)

    assert torch.autograd.gradcheck(function, (output, x, A, B, h), fast_mode=order > 1)


@pytest.mark.parametrize("h_is_there", [True, False])
def test_what_torch_asks_of_an_operator(h_is_there: bool) -> None:
    """Schemas, fake kernels and autograd registrations agree with what the operators do."""
    order = 2 if h_is_there else 1
    A, B, h = values(order, "full", torch.float32)
    x, output, grad = (torch.randn(4, n, requires_grad=True) for n in (5, 3, 3))
    seed = torch.tensor([3])
    call = (*form(order, "full"), torch.float32, 0.25, "factored", "factored")
    ops = torch.ops.pera_lightning
    torch.library.opcheck(ops.expand_factors.default, (A, B, h, None, *form(order, "full"), torch.float32))
    torch.library.opcheck(ops.drop_entries.default, (x, seed, 9000, torch.bfloat16), test_utils="test_schema")
    torch.library.opcheck(ops.drop_entries.default, (x, seed, 9000, torch.float32))
    torch.library.opcheck(ops.drop_entries_.default, (x.detach(), seed, 9000))
    torch.library.opcheck(ops.add_adapter.default, (output, x, A, B, h, seed, *call))
    kept = (grad.detach(), x.detach(), A.detach(), B.detach(), None if h is None else h.detach(), seed)
    torch.library.opcheck(ops.adapter_gradients.default, (*kept, [True] * 4, *call))
    right, left = ops.expand_factors(*kept[2:5], None, *form(order, "full"), torch.float32)
    wanted = (right, left, *kept[2:5], None, h_is_there, *form(order, "full"))
    torch.library.opcheck(ops.fold_gradients.default, wanted)


def test_the_fake_kernel_knows_the_block_of_the_real_one() -> None:
    assert operators.ROWS == fold.BLOCK


def test_the_whole_adapter_has_an_operator() -> None:
    assert pera_lightning.functional.fused.fused_operator.add_adapter is not None


@pytest.mark.parametrize("order", [1, 2, 3])
def test_shapes_can_be_worked_out_without_memory(order: int) -> None:
    from pera_lightning.functional import pera_linear

    A, B, h = (None if value is None else value.detach().to("meta").requires_grad_() for value in values(order, "full"))
    x = torch.randn(2, 7, 5, dtype=torch.float64, device="meta", requires_grad=True)
    y = pera_linear(x, A, B, h, order=order, dropout=0.5, training=True)
    assert type(y.grad_fn).__name__ == "FusedFunctionBackward"
    assert y.shape == (2, 7, 3)
    y.sum().backward()
    for value in (x, A, B, h):
        assert value is None or value.grad.shape == value.shape


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_compiler_sees_one_operator_for_each_layer(dropout: float) -> None:
    """Where kernels serve, which the meta device stands for; in one graph, forward and back."""
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 5)).train()
    inject_adapter(model, PeraConfig(4, dropout=dropout, target_modules=["0", "2"]))
    model, x = model.to("meta"), torch.empty(3, 12, device="meta", requires_grad=True)
    seen: list[Any] = []

    def backend(graph: torch.fx.GraphModule, example: Any) -> torch.fx.GraphModule:
        seen.extend(node.target for node in graph.graph.nodes if node.op == "call_function")
        return graph

    torch._dynamo.reset()
    torch.compile(model, backend=backend, fullgraph=True)(x)
    assert seen.count(torch.ops.pera_lightning.add_adapter) == 2
    assert len(seen) == (7 if dropout else 5)
    torch._dynamo.reset()
    torch.compile(model, backend="aot_eager", fullgraph=True)(x).sum().backward()
    assert x.grad is not None
    assert model[0].pera_A.grad is not None
