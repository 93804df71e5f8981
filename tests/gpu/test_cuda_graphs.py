"""A layer's forward and backward pass captured in a CUDA graph and replayed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from pera_lightning.functional import pera_linear

DROPOUT = 0.3
ERRORS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


class Operands(NamedTuple):
    """Input, factors, coefficients and the output's gradient."""

    x: Tensor
    A: Tensor
    B: Tensor
    h: Tensor
    grad: Tensor


def operands(device: torch.device, dtype: torch.dtype = torch.float32) -> Operands:
    x, A, B, h = torch.randn(64, 512), torch.randn(8, 512) * 0.05, torch.randn(256, 8), torch.randn(36)
    leaves = [value.to(device).requires_grad_() for value in (x.to(dtype), A, B, h)]
    return Operands(*leaves, torch.randn(64, 256).to(device, dtype))


def passes(given: Operands, dropout: float) -> list[Tensor]:
    """The output and the gradients of x, A, B and h."""
    leaves = given[:4]
    y = pera_linear(*leaves, dropout=dropout, training=True)
    return [y, *torch.autograd.grad(y, leaves, given.grad)]


def captured(function: Callable[[], list[Tensor]]) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
    """A graph of the function, and the tensors that its replays write."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = function()
    return graph, found


def same_mask(given: Operands, y: Tensor, grad_x: Tensor) -> bool:
    """y is linear in x under one mask: then <grad, y> = <x, grad_x>, and under two it is not."""
    forward = (given.grad.double() * y.double()).sum()
    backward = (given.x.double() * grad_x.double()).sum()
    return bool((forward - backward).abs() < 1e-3 * (given.grad.double() * y.double()).abs().sum() / y.numel() ** 0.5)


@pytest.mark.parametrize("dtype", ERRORS, ids=str)
def test_replays_compute_with_what_is_there(cuda: torch.device, dtype: torch.dtype) -> None:
    given = operands(cuda, dtype)
    graph, found = captured(lambda: passes(given, 0.0))
    with torch.no_grad():
        for value in given[:4]:
            value.mul_(0.5)
    graph.replay()
    for one, other in zip(found, passes(given, 0.0), strict=True):
        # Of sums that may be taken in another order.
        assert (one - other).norm() < ERRORS[dtype] * other.norm()


def test_every_replay_draws_a_mask_for_both_directions(cuda: torch.device) -> None:
    given = operands(cuda)
    graph, (y, grad_x, *_) = captured(lambda: passes(given, DROPOUT))
    outputs = []
    for _ in range(3):
        graph.replay()
        assert same_mask(given, y, grad_x)
        outputs.append(y.clone())
    assert not torch.allclose(outputs[0], outputs[1])
    assert not torch.allclose(outputs[1], outputs[2])


def test_masks_of_both_directions_are_told_apart(device: torch.device) -> None:
    """Without a graph: one mask is recognised, and two are."""
    given = operands(device)
    y, grad_x, *_ = passes(given, DROPOUT)
    assert same_mask(given, y, grad_x)
    _, other, *_ = passes(given, DROPOUT)
    assert not same_mask(given, y, other)
