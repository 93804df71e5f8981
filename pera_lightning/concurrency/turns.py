"""Who may change a model, and when: changes wait for each other, for readers and for calls.

Calls are waited for where a model is guarded (`call_guards.py`): by an `AdapterSet`.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Concatenate, ParamSpec, TypeVar
from weakref import WeakSet

from torch import nn

from pera_lightning.concurrency.call_guards import Change, register
from pera_lightning.concurrency.model_parts import own_inner_pass, parts_of
from pera_lightning.concurrency.refusals import beside_a_block, beside_a_call, inside_a_call

PATIENCE = 2.0
"""Seconds that a change waits for others; they may be waiting for the thread that makes it."""

P = ParamSpec("P")
R = TypeVar("R")
Model = TypeVar("Model", bound=nn.Module)

_numbers = itertools.count()
# The turns that this code is within. Numbers, for contexts are copied and live long.
_enclosing: ContextVar[tuple[int, ...]] = ContextVar("_enclosing", default=())


class Turn:
    """One change of a model, or one block (or reading) within which others may not change it.

    Args:
        model: What it is about.
        around: Of a change at the end of a block: the block.

    Attributes:
        model: What it is about.
        number: Its own.
        enclosing: Numbers of those that it is within. They do not stand in its way.
        owner: Id of the thread and the asyncio task that it was begun in.
        thread: Id of the thread that makes the change.
        exclusive: Whether it suffers no other turn beside it.
        granted: Whether it has begun.
        change: The change that is made now, if it is one.
        keeps: Of a block: whether the model is in its state.
        undos: Of a block: what it does at its end, and to which models.
    """

    def __init__(self, model: nn.Module, around: Turn | None = None) -> None:
        self.model = model
        self.number = next(_numbers)
        self.thread = threading.get_ident()
        self.owner: tuple[int, Any] = _present_owner() if around is None else around.owner
        # A context reaches tasks and threads that were begun within a block, and run beside it.
        own = {turn.number for turn in list(present_turns) if turn.owner == self.owner}
        self.enclosing: set[int] = own.intersection(_enclosing.get())
        if around is not None:
            self.enclosing = {*around.enclosing, around.number}
        self.exclusive = True
        self.granted = False
        self.change: Change | None = None
        self.keeps: Callable[[], bool] | None = None
        self.undos: list[tuple[nn.Module, Callable[[], object]]] = []

    @functools.cached_property
    def parts(self) -> WeakSet[nn.Module]:
        """Of the model; found when they are asked for."""
        return parts_of(self.model)

    def overlaps(self, other: Turn) -> bool:
        """Whether it is another turn, about the same model or one that shares modules with it."""
        return other is not self and not self.parts.isdisjoint(other.parts)

    def first_against(self) -> Turn | None:
        """The first turn that has to end before this one begins."""
        # Whoever has a turn already goes before those who wait, for they wait for its end.
        goes_first = any(turn.number in self.enclosing and turn.overlaps(self) for turn in present_turns)
        for turn in present_turns:
            if turn is self and not goes_first:
                return None
            counts = turn.granted or not goes_first
            apart = turn.number not in self.enclosing and turn.overlaps(self)
            if counts and apart and (self.exclusive or turn.exclusive):
                return turn
        return None


present_turns: list[Turn] = []
"""In the order in which they came; they come and go under the register's lock."""


def in_turn(function: Callable[Concatenate[Model, P], R]) -> Callable[Concatenate[Model, P], R]:
    """Have a function that changes its first argument, a model or layer, run within `changing`."""

    @functools.wraps(function)
    def changing_function(model: Model, *args: P.args, **kwargs: P.kwargs) -> R:
        with changing(model):
            return function(model, *args, **kwargs)

    return changing_function


@contextmanager
def reading(model: object, *, alone: bool = False) -> Iterator[None]:
    """Within this context nobody else changes the model: to be put around whatever reads its adapter.

    Calls and other readers go on; changes wait for the end.

    Args:
        model: The model. For anything else (a folder, from which an adapter is read) nothing is done.
        alone: Without other readers: for those that change the model in between, which could not wait for each other.

    Raises:
        InjectionError: A change of another thread has not ended within `PATIENCE` seconds.
    """
    if not isinstance(model, nn.Module):
        yield
        return
    turn, deadline = Turn(model), time.monotonic() + PATIENCE
    turn.exclusive = alone
    with entered(turn):
        wait_for_turn(lambda: turn.first_against() is None, turn, deadline)
        yield


@contextmanager
def entered(turn: Turn) -> Iterator[None]:
    """Within this context a turn counts for others, and this code is within it."""
    with register.lock:
        present_turns.append(turn)
    _enclosing.set((*_enclosing.get(), turn.number))
    try:
        yield
    finally:
        _enclosing.set(tuple(number for number in _enclosing.get() if number != turn.number))
        with register.lock:
            present_turns.remove(turn)
            register.changed.notify_all()


@contextmanager
def changing(model: nn.Module, around: Turn | None = None) -> Iterator[None]:
    """Within this context the model is this thread's alone: to be put around whatever changes what it computes.

    Waits for calls of a guarded model that run in other threads, and for their changes, readings and blocks of `kept`.
    Calls that other threads begin meanwhile wait for the end of the context. One may be within another.

    Args:
        model: The model, or the layer, that changes.
        around: The block at whose end it changes; it need not have been begun in this thread.

    Raises:
        InjectionError: This thread is within a forward pass of a part of the model, or others have not come to an end
            within `PATIENCE` seconds. Nothing has changed.
    """
    ident = threading.get_ident()
    if any(turn.thread == ident and turn.change is not None and model in turn.parts for turn in list(present_turns)):
        # Within another change of this thread.
        yield
        return
    turn, deadline = Turn(model, around), time.monotonic() + PATIENCE
    layer = own_inner_pass(model)
    if layer is not None:
        raise inside_a_call(layer)
    with entered(turn):
        wait_for_turn(lambda: turn.first_against() is None, turn, deadline)
        try:
            _hold_up_calls(turn, deadline)
            yield
        finally:
            with register.lock:
                if turn.change is not None:
                    for guard in turn.change.guards:
                        guard.changes.remove(turn.change)
                turn.change = None
                register.changed.notify_all()


def wait_for_turn(is_free: Callable[[], bool], turn: Turn, deadline: float) -> None:
    """Wait until a turn can be granted, and grant it."""
    with register.lock:
        while not is_free():
            left, other = deadline - time.monotonic(), turn.first_against()
            # A task of this thread goes on only when this one lets it.
            if other is not None and (left <= 0 or other.owner[0] == threading.get_ident()):
                raise beside_a_block(other.owner, PATIENCE)
            register.changed.wait(max(left, 0))
        turn.granted = True


def _hold_up_calls(turn: Turn, deadline: float) -> None:
    with register.lock:
        # To be found afresh: the model may have changed while this turn waited.
        vars(turn).pop("parts", None)
        shared = [module for module in list(register.guards) if not turn.parts.isdisjoint(parts_of(module))]
        guards = [register.guards[module] for module in shared]
        # First the calls that the last change has held up, or changes one after the other would let none begin.
        while any(guard.waiting and not guard.changes for guard in guards) and time.monotonic() < deadline:
            register.changed.wait(max(deadline - time.monotonic(), 0))
        turn.change = Change(turn.thread, guards)
        for guard in guards:
            guard.put_in_place()
            guard.changes.append(turn.change)
        while others := [call for guard in guards for call in guard.calls() if call[2] != turn.thread]:
            if time.monotonic() >= deadline:
                raise beside_a_call(*others[0], PATIENCE)
            register.changed.wait(max(deadline - time.monotonic(), 0))


def _present_owner() -> tuple[int, Any]:
    asyncio, task = sys.modules.get("asyncio"), None
    if asyncio is not None:
        # Without a running loop there is no task.
        with contextlib.suppress(RuntimeError):
            task = asyncio.current_task()
    return threading.get_ident(), task


def _forget_other_threads() -> None:
    """In a forked process there is but one thread, and nobody who would release the lock or end a call or block."""
    register.lock = threading.RLock()
    register.changed = threading.Condition(register.lock)
    own = threading.get_ident()
    for turn in present_turns:
        if turn.change is not None:
            turn.change.is_lost = turn.thread != own
    present_turns[:] = [turn for turn in present_turns if turn.change is not None or turn.owner[0] == own]
    for guard in register.guards.values():
        guard.running = {call: ident for call, ident in guard.running.items() if ident == own}


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_threads)
