"""Blocks within which a model stays in a state: an adapter in place, or none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

from pera_lightning.concurrency import turns
from pera_lightning.concurrency.call_guards import register
from pera_lightning.concurrency.refusals import in_another_order
from pera_lightning.concurrency.turns import Turn, changing, entered, wait_for_turn


@contextmanager
def kept(model: nn.Module, is_so: Callable[[], bool], make_so: Callable[[], Callable[[], object]]) -> Iterator[None]:
    """Within this context the model is in a certain state, and stays in it.

    Changes that others want wait for the end. Calls do not, and blocks that want the same state run side by side: of
    several threads, the last one to leave brings back what was before.

    Args:
        model: The model.
        is_so: Whether it is in this state.
        make_so: Brings it there; returns what brings it back.

    Raises:
        InjectionError: As by `changing`. Where it is raised at the end, the model stays as it was within.
    """
    turn, deadline = Turn(model), time.monotonic() + turns.PATIENCE
    turn.keeps = is_so
    with entered(turn):
        wait_for_turn(lambda: _joins(turn, is_so) or turn.first_against() is None, turn, deadline)
        if turn.exclusive:
            with changing(model, turn):
                turn.undos.append((model, make_so()))
            with register.lock:
                turn.exclusive = False
                register.changed.notify_all()
        try:
            yield
        finally:
            if not _leaves_to_others(turn):
                # Nothing to bring back but what was changed within this block.
                for changed, bring_back in turn.undos or [(model, make_so)]:
                    with changing(changed, turn):
                        bring_back()


def _joins(turn: Turn, is_so: Callable[[], bool]) -> bool:
    """Have a block share the state that the model is in, if it wants that."""
    turn.exclusive = False
    if turn.first_against() is None and is_so():
        return True
    turn.exclusive = True
    return False


def _leaves_to_others(turn: Turn) -> bool:
    """Whether nothing is to be done at the end of a block; else it has the model to itself then."""
    deadline = time.monotonic() + turns.PATIENCE
    with register.lock:
        beside = [other for other in turns.present_turns if other.granted and other.overlaps(turn)]
        blocks = [other for other in beside if other.keeps is not None]
        within = [other for other in blocks if turn.number in other.enclosing]
        # In the same state as this one. But what goes on around this block relies on its own.
        sharing = blocks if all(other.number not in turn.enclosing for other in blocks) else []
        for heir in [*within, *sharing][:1]:
            heir.undos += turn.undos
            if within:
                raise in_another_order()
            return True
        assert turn.keeps is not None
        if not turn.undos and turn.keeps():
            return True
        # Not granted any more: another one that has a turn and wants a change need not wait for this one.
        turn.exclusive, turn.granted = True, False
        wait_for_turn(lambda: turn.first_against() is None, turn, deadline)
        return False
