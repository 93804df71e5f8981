"""Calls of a model that stop half way until they are told to go on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.several_adapters import IDS, dense_parameters, loaded, network

LONG = 30.0
"""Seconds after which a test has failed that waits for a thread."""


def reference(folder: Path | None) -> Tensor:
    """What the small network answers with an adapter, or as the base: plain layers, their weights from the equation."""
    model = network()
    if folder is not None:
        model.load_state_dict(dense_parameters(loaded(folder)))
    return model(IDS).detach()


def is_like(output: Tensor, expected: Tensor) -> bool:
    return torch.allclose(output, expected, rtol=1e-10, atol=1e-12)


def in_thread(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
    """Call a function in a thread of its own."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


class Pause:
    """A hook that stops the first call of a module until `go_on`.

    Args:
        module: Whose call.
    """

    def __init__(self, module: nn.Module) -> None:
        self._reached, self._released = threading.Event(), threading.Event()
        self._first = threading.Lock()
        self._handle = module.register_forward_pre_hook(self)

    def __call__(self, *_: Any) -> None:
        if self._first.acquire(blocking=False):
            self.stop()

    def stop(self) -> None:
        self._reached.set()
        assert self._released.wait(LONG)

    def wait(self) -> None:
        """Return when a call has stopped."""
        assert self._reached.wait(LONG)

    def go_on(self) -> None:
        """Let the call go on, and no others stop."""
        self._released.set()
        self._handle.remove()
