"""What a pickle would cost to read, found out by walking along it; nothing of it is made."""

from __future__ import annotations

import pickle
import pickletools
from typing import IO, Any, NamedTuple

_STEPS = 1 << 26
"""Of the pickle: some hundred for a tensor."""
_KEY = 10_000
"""Things within one key of a dict, counted as often as they are in it."""
_KEYS = 10_000_000
"""Things within all keys."""
_MARK = 0
_LEAF = 1


class _Step(NamedTuple):
    """What an opcode does to the stack.

    Attributes:
        taken: How many things it takes, with a mark those below it.
        to_mark: Whether it takes a mark, and all above it.
        given: How many things it leaves.
        is_tuple: Whether it makes a tuple of what it takes.
        keys: First and every how many-th of what it takes are keys, which are hashed; None without any.
    """

    taken: int
    to_mark: bool
    given: int
    is_tuple: bool
    keys: slice | None


_KEYS_OF = {
    "SETITEM": slice(1, None, 2),
    "SETITEMS": slice(1, None, 2),
    "ADDITEMS": slice(1, None),
    "DICT": slice(0, None, 2),
    "FROZENSET": slice(0, None),
}
_TUPLES = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET")


def _step(opcode: pickletools.OpcodeInfo) -> _Step:
    before, name = opcode.stack_before, opcode.name
    to_mark = pickletools.markobject in before
    taken = before.index(pickletools.markobject) if to_mark else len(before)
    return _Step(taken, to_mark, len(opcode.stack_after), name in _TUPLES, _KEYS_OF.get(name))


_STEP = {opcode.name: _step(opcode) for opcode in pickletools.opcodes}
_PUSHES = {name for name, step in _STEP.items() if not step.taken and not step.to_mark and step.given}
_PUSHES -= {"GET", "BINGET", "LONG_BINGET", "MARK"}


def refuse_endless_pickle(file: IO[bytes]) -> None:
    """Raise pickle.UnpicklingError for what could not be read in a moment; the file is at its beginning afterwards.

    A few bytes are enough for tuples so deep in one another, or so often in one another, that to hash them ends the
    process or takes years; `torch.load(weights_only=True)` reads these too.

    Args:
        file: The pickle, which can be searched.

    Raises:
        pickle.UnpicklingError: As said.
        Exception: Of any kind, if it is damaged.
    """
    walk = _Walk()
    stack, step = walk.stack, walk.step
    for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        # Most of them: numbers, texts, empty containers.
        if opcode.name in _PUSHES:
            stack.append(_LEAF)
        else:
            step(opcode.name, argument)
        if number > _STEPS:
            raise pickle.UnpicklingError(f"it takes more than {_STEPS:,} steps to read")
    file.seek(0)


class _Walk:
    """The stack and the memo of an unpickler, with the cost of things in place of the things."""

    def __init__(self) -> None:
        self.stack: list[int] = []
        self.memo: dict[int, int] = {}
        self.keys = 0

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            # Python makes room for all numbers up to it.
            if argument > len(self.memo):
                raise pickle.UnpicklingError("it numbers things that it does not hold")
            self.memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self.memo[argument])
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "DUP":
            stack.append(stack[-1])
        else:
            self.combine(_STEP[name])

    def combine(self, step: _Step) -> None:
        taken = self.take(step)
        if step.keys is not None:
            self.keys += sum(taken[step.keys])
            if self.keys > _KEYS:
                raise pickle.UnpicklingError("it holds tuples without end in one another")
        if step.given:
            # No further than matters: numbers would grow with the pickle.
            size = 1 + sum(taken) if step.is_tuple else _LEAF
            self.stack.append(size if size <= _KEY else _KEYS + 1)

    def take(self, step: _Step) -> list[int]:
        stack, split = self.stack, len(self.stack)
        if step.to_mark:
            split -= 1
            while stack[split] != _MARK:
                split -= 1
            del stack[split]
        split -= step.taken
        if split < 0:
            raise pickle.UnpicklingError("it takes what is not there")
        taken = stack[split:]
        del stack[split:]
        return taken
