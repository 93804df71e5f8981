"""What is said where a change and something else of the model cannot go together."""

from __future__ import annotations

import threading
from typing import Any

from torch import nn

from pera_lightning.errors import InjectionError


def inside_a_call(layer: nn.Module) -> InjectionError:
    """A hook or layer changes the model whose forward pass it takes part in."""
    return InjectionError(
        "A model cannot be changed from within its own forward pass.",
        got=f"a change during the call of {type(layer).__name__}, a part of the model",
        expected="changes before or after a call of the whole model",
        fix="move it out of the hook or layer that makes it, to where the model is called",
    )


def beside_a_call(kind: str, name: str, ident: int, seconds: float) -> InjectionError:
    """A call of another thread takes too long."""
    return InjectionError(
        "The model cannot be changed while another thread computes with it; nothing has changed.",
        got=f"{kind} of {name} in thread {_thread_name(ident)!r} that did not end within {seconds:g} s",
        expected="calls that end meanwhile",
        fix="let calls that take long and changes take turns, by a lock of your own around both: "
        "`with lock, adapters.using(name) as model: model.generate(...)`",
    )


def beside_a_block(owner: tuple[int, Any], seconds: float) -> InjectionError:
    """Another thread or task changes the model, or keeps it as it is, and goes on doing so."""
    ident, task = owner
    where = f"thread {_thread_name(ident)!r}" + ("" if task is None else f", task {task.get_name()!r}")
    return InjectionError(
        "The model cannot be changed while others rely on how it is; nothing has changed.",
        got=f"a block of AdapterSet.using or adapter_disabled (or a change, save or export) in {where}, which did not "
        f"end within {seconds:g} s or waits for this one",
        expected="one adapter at a time",
        fix="let blocks that need different adapters take turns, by a lock of your own around them (an asyncio.Lock "
        "between tasks), or give each a model of its own",
    )


def in_another_order() -> InjectionError:
    """Two generators of one thread have each been within a block."""
    return InjectionError(
        "Blocks that keep a model as it is have ended in another order than they began: what was computed in the outer "
        "one since, was computed with the adapter of the inner one.",
        got="AdapterSet.using or adapter_disabled in generators that ran in turns",
        expected="inner blocks that end first",
        fix="end one generator before the next begins, or take the block around every single call",
    )


def after_a_fork(name: str) -> InjectionError:
    """The thread that was changing the model does not exist in this process."""
    return InjectionError(
        "The model was changing when this process was forked from another one: it is neither the old nor the new one.",
        got=f"a call of {name}",
        expected="a process that begins while no thread changes the model",
        fix="start processes before threads, or by the start method 'spawn'",
    )


def _thread_name(ident: int) -> str:
    return next((thread.name for thread in threading.enumerate() if thread.ident == ident), str(ident))
