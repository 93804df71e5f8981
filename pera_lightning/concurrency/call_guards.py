"""Guards of models: they count the calls of a model, and hold new ones up while another thread changes it.

The calls could be found on the stacks of all threads, too. But frames of a running thread end while they are looked at,
which ends the process.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, ref

import torch
from torch import nn
from torch._C._dynamo import eval_frame

from pera_lightning.concurrency.model_parts import unwrapped
from pera_lightning.concurrency.refusals import after_a_fork

# Torch calls this in place of a module's forward pass where it is set (`module.compile()` sets it), before hooks and
# whatever is compiled below.
_FIRST = "_compiled_call_impl"
_GENERATE, _REPLICATE = "generate", "_replicate_for_data_parallel"

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(eq=False)
class Change:
    """A change of a model that is being made, and holds calls up.

    Attributes:
        thread: Id of the thread that makes it.
        guards: Those whose calls it holds up.
        is_lost: Whether that thread does not exist in this process.
    """

    thread: int
    guards: list[Guard]
    is_lost: bool = False


class Register:
    """The guards of this process, and what those wait by that change a model or call it.

    Attributes:
        guards: By the modules that they guard.
        lock: Held while calls begin, and while turns come, change and go.
        changed: On that lock; notified of what others may wait for.
    """

    def __init__(self) -> None:
        self.guards: WeakKeyDictionary[nn.Module, Guard] = WeakKeyDictionary()
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)


register = Register()


def guard_calls(model: nn.Module) -> None:
    """Have the calls of a model counted from now on: its forward passes, and `generate` where it has that.

    Copies and pickles of the model have no guards.

    Args:
        model: What is called. Of a wrapper of torch (`torch.compile`) what it wraps is guarded as well.
    """
    with register.lock:
        for module in unwrapped(model):
            register.guards.setdefault(module, Guard(module)).put_in_place()


def _not_compiled(function: F) -> F:
    """Have a function run as it is within a compiled call, and what it calls still be compiled."""
    # Where a later torch has none of these, a guard in a compiled call is one more piece of it.
    if hasattr(eval_frame, "set_code_exec_strategy"):
        actions = eval_frame._FrameAction
        strategy = eval_frame._FrameExecStrategy(actions.SKIP, actions.DEFAULT)
        eval_frame.set_code_exec_strategy(function.__code__, strategy)
    return function


class Guard:
    """What a call of a module passes.

    Args:
        module: The module.

    Attributes:
        name: Of the module's class.
        running: Kind of a call, with an object of its own -> id of its thread.
        changes: Changes that are being made.
        waiting: Number of calls that wait for them.
    """

    def __init__(self, module: nn.Module) -> None:
        self.name = type(module).__name__
        self.running: dict[tuple[str, object], int] = {}
        self.changes: list[Change] = []
        self.waiting = 0
        # A model that nobody uses any more is to be gone at once.
        self._module = ref(module)
        self._compiled: Callable[..., Any] | None = None

    @_not_compiled
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module."""
        call = self._compiled or self._module()._call_impl  # type: ignore[union-attr]
        # No part of a graph of something around the module.
        if torch.compiler.is_dynamo_compiling():
            return call(*args, **kwargs)
        return self.count("a call", call, args, kwargs)

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        # For classes of modules that copy everything.
        return type(None), ()

    @_not_compiled
    def count(self, kind: str, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Make a call, once no other thread changes the module."""
        key = kind, object()
        try:
            with register.lock:
                if self.changes:
                    self._wait()
                self.running[key] = threading.get_ident()
            return call(*args, **kwargs)
        finally:
            self.running.pop(key, None)
            if self.changes:
                with register.lock:
                    register.changed.notify_all()

    @_not_compiled
    def _wait(self) -> None:
        own = threading.get_ident()
        while True:
            against = None
            for change in self.changes:
                running: list[int] = []
                for guard in change.guards:
                    running += list(guard.running.values())
                # A call within one that began before the change is to end before it.
                if own not in (change.thread, *running):
                    against = change
            if against is None:
                return
            if against.is_lost:
                raise after_a_fork(self.name)
            self.waiting += 1
            try:
                register.changed.wait()
            finally:
                self.waiting -= 1
                register.changed.notify_all()

    def calls(self) -> list[tuple[str, str, int]]:
        """Kinds of the calls that run, the module's class, and the threads."""
        # At once, for calls end without the lock.
        return [(kind, self.name, ident) for (kind, _), ident in list(self.running.items())]

    def put_in_place(self) -> None:
        """Be what is called, also where something else has been put there since."""
        module = self._module()
        if module is None:
            return
        present = vars(module).get(_FIRST)
        if present is not self:
            self._compiled = present
            vars(module)[_FIRST] = self
        for name in (_GENERATE, _REPLICATE):
            # Not what a wrapper takes from the module within.
            method = getattr(module, name) if name in vars(module) or hasattr(type(module), name) else None
            if method is not None and not isinstance(method, _Method):
                vars(module)[name] = _Method(self, name, method)


class _Method:
    """A method of a guarded module, in the module itself.

    Args:
        guard: The guard.
        name: Of the method.
        method: What was there before.
    """

    def __init__(self, guard: Guard, name: str, method: Callable[..., Any]) -> None:
        functools.update_wrapper(self, method)
        self.__self__, self.__name__ = getattr(method, "__self__", None), name
        self._guard, self._method = guard, method

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.__name__ == _GENERATE:
            return self._guard.count(_GENERATE, self._method, args, kwargs)
        # Replicas, which compute themselves.
        replica = self._method()
        for name in (_FIRST, _GENERATE, _REPLICATE):
            vars(replica).pop(name, None)
        return replica

    def __reduce__(self) -> tuple[Any, ...]:
        # In a copy of the module: its own method, without a guard.
        return functools.partial, (self._method,)
