"""What was saved for a backward pass and then changed in place gave wrong gradients, or its error was hidden."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pera_lightning.layers import TokenRows, TokenRowsLinear
from pera_lightning.models.activation_offloading import ActivationOffloading
from tests.support.inplace import IN, OUT, Operation, adapted, expected, factors, several, weighed

MODIFIED = "has been modified by an inplace operation"


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("order", [1, 2])
def test_an_input_that_was_saved_and_changed_is_refused_by_torch(order: int) -> None:
    layer, x = adapted(order), torch.randn(2, 3, IN, requires_grad=True) * 1
    y = layer(x)
    x.mul_(2)
    with pytest.raises(RuntimeError, match=MODIFIED):
        y.sum().backward()


@pytest.mark.usefixtures("both_ways")
def test_a_factor_that_was_saved_and_changed_is_refused_by_torch() -> None:
    layer, x = adapted(), torch.randn(2, 3, IN)
    y = layer(x)
    with torch.no_grad():
        layer.pera_B.mul_(2)
    with pytest.raises(RuntimeError, match=MODIFIED):
        y.sum().backward()


class Body(nn.Module):
    """An adapted layer whose input changes after it."""

    def __init__(self, change: Operation) -> None:
        super().__init__()
        self.layer, self.change = adapted(), change

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1
        y = self.layer(x)
        self.change(x)
        return y


@pytest.mark.parametrize("change", [F.relu_, lambda x: x[0].zero_(), lambda x: x.detach().mul_(2)])
def test_a_change_is_not_hidden_by_offloading(change: Operation) -> None:
    """A tensor that is too small to be moved is the same memory as before."""
    body, x = Body(change), torch.randn(2, 3, IN, requires_grad=True)
    ActivationOffloading().attach(body)
    y = body(x)
    with pytest.raises(RuntimeError, match=MODIFIED):
        y.sum().backward()


def test_offloaded_inputs_come_back_as_they_were_saved() -> None:
    """Whatever became of them: then the gradients are right."""
    body, x = Body(F.relu_), torch.randn(2, 3, IN, requires_grad=True)
    ActivationOffloading(1).attach(body)
    y = body(x)
    body.layer.pera_A.grad = None
    right = expected(body.layer, body.layer.base_layer.weight, x, lambda y: y)
    found = [y, *torch.autograd.grad(weighed(y), [x, *factors(body.layer)])]
    for value, exact in zip(found, right, strict=True):
        torch.testing.assert_close(value.double(), exact, rtol=1e-4, atol=1e-4)


class KeepingItsOutput(nn.Linear):
    """A base that keeps its output, and something whose gradient needs it."""

    def forward(self, x: Tensor) -> Tensor:
        self.output = super().forward(x)
        self.penalty = self.output.square()
        return self.output


@pytest.mark.parametrize("kind", ["adapter", "token rows"])
def test_the_output_of_the_base_stays_what_it_was(kind: str) -> None:
    base, x = KeepingItsOutput(IN, OUT).requires_grad_(False), torch.randn(2, 3, IN, requires_grad=True)
    layer: Any = adapted(base=base)
    if kind == "token rows":
        layer = TokenRowsLinear(base, TokenRows([1, 3], base.weight))
        nn.init.normal_(layer.token_rows.delta)
    y = several(layer(x))
    plain = F.linear(x, base.weight, base.bias)
    torch.testing.assert_close(base.output, plain)
    assert not torch.equal(y, several(plain.clone()))
    (found,), (right,) = (torch.autograd.grad(value.sum(), x) for value in (base.penalty, plain.square()))
    torch.testing.assert_close(found, right)
