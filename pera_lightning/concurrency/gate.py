"""Holding up calls of modules while a model changes. As long as nothing changes, nothing is in their way."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

# Torch calls this in place of a module's forward pass where it is set (`module.compile()` sets it), before anything
# else and whatever is compiled above or below. Hooks would not do: compiled modules have passed by them already.
_FIRST = "_compiled_call_impl"


class Gate:
    """What every call of a module has to pass while it is shut; there is one of it in a process.

    Args:
        wait: Called with the module before each call of any module while the gate is shut; returns when it may begin.
    """

    def __init__(self, wait: Callable[[nn.Module], None]) -> None:
        self._wait = wait
        # Who has shut it -> the modules that are compiled in place, and what torch is to call for them again.
        self._shut: dict[object, list[tuple[nn.Module, Any]]] = {}

    def shut(self, key: object, parts: Iterable[nn.Module]) -> None:
        """Have calls wait.

        Args:
            key: Who wants it.
            parts: The modules of the model, of which some may be compiled in place.
        """
        compiled = [(part, vars(part)[_FIRST]) for part in parts if vars(part).get(_FIRST) is not None]
        if not self._shut:
            setattr(nn.Module, _FIRST, self._plain())
        self._shut[key] = compiled
        for part, call in compiled:
            vars(part)[_FIRST] = self._compiled(part, call)

    def open(self, key: object) -> None:
        """Let them go on, if nobody else has shut it; without effect for who has not."""
        for part, call in self._shut.pop(key, ()):
            vars(part)[_FIRST] = call
        if not self._shut:
            setattr(nn.Module, _FIRST, None)

    def _plain(self) -> Callable[..., Any]:
        wait = _untraced(self._wait)

        # Not `self`, by which a call that runs is recognised: this one waits.
        def call_in_turn(module: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
            wait(module)
            return module._call_impl(*args, **kwargs)

        return _untraced(call_in_turn, recursive=False)

    def _compiled(self, module: nn.Module, call: Callable[..., Any]) -> Callable[..., Any]:
        wait = _untraced(self._wait)

        def compiled_call_in_turn(*args: Any, **kwargs: Any) -> Any:
            wait(module)
            return call(*args, **kwargs)

        return _untraced(compiled_call_in_turn, recursive=False)


def _untraced(function: Callable[..., Any], *, recursive: bool = True) -> Callable[..., Any]:
    """The function, for the compiler to leave alone where it has been loaded."""
    if "torch._dynamo" not in sys.modules:
        return function
    disabled: Callable[..., Any] = torch.compiler.disable(function, recursive=recursive)
    return disabled
