"""What the code of a hook reads: the weight of its module is the base's alone under an adapter.

Hooks are not tried, since most record something. Their code is followed as far as it is the user's own: functions and
methods that it names, closures, defaults, what decorators wrap. A name that leads to weights counts as a use of one.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise, takewhile
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import nn

ABOUT_TENSORS = ("dtype", "device", "shape", "ndim")
"""What a weight is asked for that an adapter does not change."""

LEADING_TO_WEIGHTS = {
    *("parameters", "named_parameters", "get_parameter", "state_dict", "_parameters", "forward"),
    *("vars", "__dict__", "__getattr__", "__getattribute__", "attrgetter", "methodcaller", "eval", "exec"),
    *("functional_call", "parameters_to_vector"),
}
"""Names by which code gets at a weight without a word of it."""

LIBRARIES = {*sys.stdlib_module_names, "torch", "lightning", "pytorch_lightning", "transformers", "accelerate", "peft"}
"""Packages whose code is not followed: it reads all sorts of things."""


def reads_weight(hook: Callable[..., Any], layer: nn.Module) -> bool:
    """Whether the code of a hook takes the numbers of a weight.

    Args:
        hook: A function, or anything else that can be called.
        layer: The module that it is set on.
    """
    code = _code(hook)
    if code is None:
        return False
    if any(map(_takes_weight, _parts(code))):
        return True
    if _is_librarys(hook) or not _has_module(hook, code, layer):
        return False
    return any(_leads_to_weight(part) for function in _reached(hook) for part in _parts(_code(function)))


def _has_module(hook: Any, code: CodeType, layer: nn.Module) -> bool:
    """Whether a hook makes use of its module: of the argument, or of one that it knows otherwise."""
    bound = not isinstance(hook, FunctionType)
    parameters = code.co_varnames[: code.co_argcount][bound : bound + 1]
    if not parameters and code.co_flags & inspect.CO_VARARGS:
        parameters = (code.co_varnames[code.co_argcount + code.co_kwonlyargcount],)
    if isinstance(hook, functools.partial) or any(_loads(part, name) for name in parameters for part in _parts(code)):
        return True
    return any(isinstance(value, nn.Module) and layer in set(value.modules()) for value in _known(hook))


def _loads(code: CodeType, name: str) -> bool:
    # Later versions of Python load two variables at once: the value is a tuple of names then.
    return any(
        step.opname.startswith("LOAD_")
        and (step.argval == name or (type(step.argval) is tuple and name in step.argval))
        for step in dis.get_instructions(code)
    )


def _reached(hook: Any) -> Iterator[Any]:
    """A hook, and whatever it may call of the user's own."""
    seen, waiting = set(), [hook]
    while waiting:
        function = waiting.pop()
        code = _code(function)
        if code is None or _is_librarys(function) or code in seen:
            continue
        seen.add(code)
        yield function
        waiting += _known(function)


def _known(function: Any) -> list[Any]:
    """What a function can name: values, and their attributes of the names in its code."""
    names = [name for part in _parts(_code(function)) for name in part.co_names]
    owners = [] if isinstance(function, FunctionType | MethodType) else [function]
    while isinstance(function, functools.partial | MethodType):
        if isinstance(function, functools.partial):
            owners += [*function.args, *function.keywords.values()]
            function = function.func
        else:
            owners.append(function.__self__)
            function = function.__func__
    if not isinstance(function, FunctionType):
        function = type(function).__call__
    owners += _surroundings(function)
    found: list[Any] = []
    while owners:
        owner = owners.pop()
        if any(owner is one for one in found):
            continue
        found.append(owner)
        if isinstance(owner, dict | list | tuple):
            owners += filter(callable, owner.values() if isinstance(owner, dict) else owner)
        elif not _is_librarys(owner) and not isinstance(owner, FunctionType | MethodType):
            owners += [_attribute(owner, name) for name in names]
    return found


def _surroundings(function: Any) -> Iterator[Any]:
    for cell in getattr(function, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # an empty cell: of a name that is given later
            yield cell.cell_contents
    surroundings = getattr(function, "__globals__", {})
    for step in (step for part in _parts(_code(function)) for step in dis.get_instructions(part)):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "IMPORT_NAME"):
            yield surroundings.get(step.argval, sys.modules.get(step.argval))
    yield from getattr(function, "__defaults__", None) or ()
    yield from (getattr(function, "__kwdefaults__", None) or {}).values()
    yield getattr(function, "__wrapped__", None)


def _attribute(owner: Any, name: str) -> Any:
    """An attribute, without running the code of a property."""
    value = inspect.getattr_static(owner, name, None)
    if isinstance(owner, nn.Module) and value is None:
        return owner._modules.get(name)
    return value.__func__ if isinstance(value, staticmethod | classmethod) else getattr(value, "fget", value)


def _is_librarys(value: Any) -> bool:
    while isinstance(value, functools.partial):
        value = value.func
    if isinstance(value, ModuleType):
        owner = value.__name__
    else:
        owner = getattr(value, "__module__", None) or type(value).__module__
    return str(owner).partition(".")[0] in LIBRARIES


def _code(function: Any) -> CodeType | None:
    """The code of a function, or of what an object does when it is called."""
    while isinstance(function, functools.partial):
        function = function.func
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    return code if isinstance(code, CodeType) else None


def _leads_to_weight(code: CodeType) -> bool:
    steps = list(dis.get_instructions(code))
    for place, step in enumerate(steps):
        after = steps[place + 1 : place + 6]
        if step.argval == "getattr" and not any(_is_text(other) for other in takewhile(_is_no_call, after)):
            return True
        leads = isinstance(step.argval, str) and step.argval in LEADING_TO_WEIGHTS
        if leads and not any(other.argval in ABOUT_TENSORS for other in after):
            return True
    return _takes_weight(code)


def _is_text(step: dis.Instruction) -> bool:
    return step.opname == "LOAD_CONST" and isinstance(step.argval, str)


def _is_no_call(step: dis.Instruction) -> bool:
    return not step.opname.startswith("CALL")


def _takes_weight(code: CodeType) -> bool:
    steps = list(dis.get_instructions(code))
    read = any(
        step.opname in ("LOAD_ATTR", "LOAD_METHOD") and step.argval == "weight" and after.argval not in ABOUT_TENSORS
        for step, after in pairwise(steps)
    )
    return read or ("getattr" in code.co_names and "weight" in code.co_consts)


def _parts(code: CodeType | None) -> Iterator[CodeType]:
    if code is None:
        return
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _parts(constant)
