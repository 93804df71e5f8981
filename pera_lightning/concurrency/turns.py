"""Who may change a model, and when: changes wait for each other and for calls, and calls for changes.

Nothing of this is kept in a model: copies and pickled models have nothing to do with each other, and a call costs what
it did. While a model changes, and only then, its calls in other threads are held up (`Gate`).
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
from types import FrameType
from typing import Any, Concatenate, ParamSpec, TypeVar

from torch import nn

from pera_lightning.concurrency.gate import Gate
from pera_lightning.concurrency.refusals import (
    after_a_fork,
    begun_beside_a_change,
    beside_a_block,
    beside_a_call,
    inside_a_call,
)
from pera_lightning.concurrency.running_calls import (
    ModelParts,
    calls_of_others,
    outermost_call,
    own_inner_pass,
    pass_around,
)

PATIENCE = 2.0
"""Seconds that a change waits for others; they may be waiting for the thread that makes it."""

POLL = 0.0005, 0.01
"""Seconds between two looks at calls that are running: at first, and after many."""

_ALIVE = 1.0
"""Seconds after which a call that waits looks whether the thread is still there that changes its model."""

P = ParamSpec("P")
R = TypeVar("R")
Model = TypeVar("Model", bound=nn.Module)

_numbers = itertools.count()
# The turns that this code is within. Numbers, for contexts are copied and live long.
_enclosing: ContextVar[tuple[int, ...]] = ContextVar("_enclosing", default=())


class Turn:
    """One change of a model, or one block within which others may not change it.

    Attributes:
        model: What it is about.
        number: Its own.
        enclosing: Numbers of those that it is within. They do not stand in its way.
        owner: Id of the thread and the asyncio task that it was begun in.
        thread: Id of the thread that makes the change.
        exclusive: Whether it suffers no other turn beside it.
        granted: Whether it has begun.
        running: Of a change that is made now: the calls that began before it and have not ended. Else None.
        keeps: Of a block: whether the model is in its state.
        undos: Of a block: what it does at its end, and to which models.
    """

    def __init__(self, model: nn.Module, around: Turn | None = None) -> None:
        self.model = model
        self.number = next(_numbers)
        self.thread = threading.get_ident()
        self.owner: tuple[int, Any] = _present_owner() if around is None else around.owner
        # A context reaches tasks and threads that were begun within a block, and run beside it.
        own = {turn.number for turn in list(register.turns) if turn.owner == self.owner}
        self.enclosing: set[int] = own.intersection(_enclosing.get())
        if around is not None:
            self.enclosing = {*around.enclosing, around.number}
        self.exclusive = True
        self.granted = False
        self.running: dict[FrameType, int] | None = None
        self.keeps: Callable[[], bool] | None = None
        self.undos: list[tuple[nn.Module, Callable[[], object]]] = []

    @functools.cached_property
    def parts(self) -> ModelParts:
        """Of the model; found when they are asked for."""
        return ModelParts(self.model)

    def overlaps(self, other: Turn) -> bool:
        """Whether it is another turn, about the same model or one that shares modules with it."""
        return other is not self and self.parts.overlap(other.parts)

    def first_against(self) -> Turn | None:
        """The first turn that has to end before this one begins."""
        # Whoever has a turn already goes before those who wait, for they wait for its end.
        goes_first = any(turn.number in self.enclosing and turn.overlaps(self) for turn in register.turns)
        for turn in register.turns:
            if turn is self and not goes_first:
                return None
            counts = turn.granted or not goes_first
            apart = turn.number not in self.enclosing and turn.overlaps(self)
            if counts and apart and (self.exclusive or turn.exclusive):
                return turn
        return None


class Register:
    """All turns of this process.

    Attributes:
        turns: In the order in which they came.
        changed: Whose lock is held while they are changed, and that is notified of it.
    """

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self.changed = threading.Condition()


register = Register()


@contextmanager
def changing(model: nn.Module) -> Iterator[None]:
    """Within this context the model is this thread's alone: to be put around whatever changes what it computes.

    Waits for calls of the model that run in other threads, and for their changes and blocks of `kept`. Calls that other
    threads begin meanwhile wait for the end of the context. One may be within another.

    Args:
        model: The model, or the layer, that changes.

    Raises:
        InjectionError: This thread is within a forward pass of a part of the model, or others have not come to an end
            within `PATIENCE` seconds. Nothing has changed.
    """
    with change(model):
        yield


def in_turn(function: Callable[Concatenate[Model, P], R]) -> Callable[Concatenate[Model, P], R]:
    """Have a function that changes its first argument, a model or layer, run within `changing`."""

    @functools.wraps(function)
    def changing_function(model: Model, *args: P.args, **kwargs: P.kwargs) -> R:
        with changing(model):
            return function(model, *args, **kwargs)

    return changing_function


@contextmanager
def entered(turn: Turn) -> Iterator[None]:
    """Within this context a turn counts for others, and this code is within it."""
    with register.changed:
        register.turns.append(turn)
    _enclosing.set((*_enclosing.get(), turn.number))
    try:
        yield
    finally:
        _enclosing.set(tuple(number for number in _enclosing.get() if number != turn.number))
        with register.changed:
            register.turns.remove(turn)
            register.changed.notify_all()


@contextmanager
def change(model: nn.Module, around: Turn | None = None) -> Iterator[None]:
    """As `changing`, on behalf of a block that need not have been begun in this thread."""
    ident = threading.get_ident()
    if any(
        turn.thread == ident and turn.running is not None and turn.parts.hold(model) for turn in list(register.turns)
    ):
        # Within another change of this thread.
        yield
        return
    turn, deadline = Turn(model, around), time.monotonic() + PATIENCE
    call = own_inner_pass(model)
    if call is not None:
        raise inside_a_call(call)
    with entered(turn):
        wait_for_turn(lambda: turn.first_against() is None, turn, deadline)
        try:
            _hold_up_calls(turn)
            _wait_for_calls(turn, deadline)
            yield
        finally:
            with register.changed:
                turn.running = None
                _GATE.open(turn)


def wait_for_turn(is_free: Callable[[], bool], turn: Turn, deadline: float) -> None:
    """Wait until a turn can be granted, and grant it."""
    with register.changed:
        while not is_free():
            left, other = deadline - time.monotonic(), turn.first_against()
            # A task of this thread goes on only when this one lets it.
            if other is not None and (left <= 0 or other.owner[0] == threading.get_ident()):
                raise beside_a_block(other.owner, PATIENCE)
            register.changed.wait(max(left, 0))
        turn.granted = True


def _hold_up_calls(turn: Turn) -> None:
    with register.changed:
        # To be found afresh: the model may have changed while this turn waited.
        vars(turn).pop("parts", None)
        turn.running = {}
        _GATE.shut(turn, turn.parts)
        # Which includes calls that have come to the gate since: they wait for the lock.
        turn.running = calls_of_others(turn.parts)


def _wait_for_calls(turn: Turn, deadline: float) -> None:
    pause, longest = POLL
    while turn.running:
        if time.monotonic() > deadline:
            call, ident = next(iter(turn.running.items()))
            raise beside_a_call(call, ident, PATIENCE)
        time.sleep(pause)
        pause = min(pause * 1.2, longest)
        present = calls_of_others(turn.parts)
        turn.running = {call: ident for call, ident in turn.running.items() if call in present}


def _wait_for_changes(module: nn.Module) -> None:
    """Have a call wait until no other thread changes the model that it is of."""
    frame = sys._getframe()
    with register.changed:
        while (change := _change_against(module, frame)) is not None:
            begun = pass_around(frame, module, change.parts)
            if begun is not None:
                raise begun_beside_a_change(begun)
            if not register.changed.wait(_ALIVE) and change.thread not in sys._current_frames():
                raise after_a_fork(module)


def _change_against(module: nn.Module, frame: FrameType) -> Turn | None:
    ident = threading.get_ident()
    for turn in register.turns:
        if turn.running is None or turn.thread == ident or not turn.parts.concern(module):
            continue
        # A call that began before the change is to end before it.
        if outermost_call(frame, turn.parts) not in turn.running:
            return turn
    return None


_GATE = Gate(_wait_for_changes)


def _present_owner() -> tuple[int, Any]:
    asyncio, task = sys.modules.get("asyncio"), None
    if asyncio is not None:
        # Without a running loop there is no task.
        with contextlib.suppress(RuntimeError):
            task = asyncio.current_task()
    return threading.get_ident(), task


def _forget_other_threads() -> None:
    """In a forked process there is but one thread, and nobody who would release the lock or end a block."""
    register.changed = threading.Condition()
    register.turns[:] = [
        turn for turn in register.turns if turn.running is not None or turn.owner[0] == threading.get_ident()
    ]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_threads)
