"""Writes docs/errors.md from the errors in the package's own source: `make docs`.

The source is read, not run. An error is a call with `got`, `expected` and `fix`. Where a helper gets words as
arguments, they are taken from each of its calls; what only a run can tell stays a placeholder such as `<path>`.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "errors.md"
INTRO = """# What went wrong, what to do

Every error that pera_lightning raises on purpose is a `PeraError` and says in four parts what to do:

```
The adapter's weights are missing.
  got:      no file adapter/adapter_model.safetensors
  expected: a folder written by save_adapter
  fix:      check the path, or save the adapter again
```

Search this page for the first line of the message, without what is yours in it: names, paths and numbers are
placeholders here, such as `<path>`. The classes are in `pera_lightning.errors`; `make docs` writes this page.
"""
Details = tuple[tuple[str, ...], ...]  # what each of DETAILS may say
DETAILS = ("got", "expected", "fix")
PLACEHOLDER = re.compile(r"`<[^`]*>`")
TRANSPARENT = {"one_line", "shorten"}  # helpers that give their argument back: it says more than they do


@dataclass
class Module:
    """What one source file defines."""

    tree: ast.Module
    names: dict[str, str] = field(default_factory=dict)  # name -> the name it was imported as
    functions: dict[str, ast.FunctionDef] = field(default_factory=dict)
    constants: dict[str, ast.expr] = field(default_factory=dict)

    @classmethod
    def parse(cls, source: str) -> Module:
        """Reads the source of one file."""
        module = cls(ast.parse(source))
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ImportFrom):
                module.names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        for node in module.tree.body:
            if isinstance(node, ast.FunctionDef):
                module.functions[node.name] = node
            elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                module.constants |= {target.id: node.value for target in targets if isinstance(target, ast.Name)}
        return module


Call = tuple[Module, ast.FunctionDef | None, ast.Call]  # where, by which function, the call
Arguments = dict[str, tuple[ast.expr, "Scope"]]  # each with the scope to read it in


@dataclass
class Scope:
    """A function (or the top of a file) with the arguments of one call of it."""

    module: Module
    function: ast.FunctionDef | None = None
    arguments: Arguments = field(default_factory=dict)

    def values(self, name: str) -> list[tuple[ast.expr, Scope]]:
        """The expressions that a name may stand for, each with the scope to read it in."""
        if name in self.arguments:
            return [self.arguments[name]]
        if self.function is not None:
            values = list(_assigned(self.function, name))
            if values or name in _parameters(self.function):
                grows = any(_mentions(value, name) for value in values)  # x = f"{x}, more": only a run can tell
                return [] if grows else [(value, self) for value in values]
        return [(self.module.constants[name], Scope(self.module))] if name in self.module.constants else []


class Package:
    """The modules of a package, by dotted name."""

    def __init__(self, sources: Mapping[str, str]) -> None:
        self.modules = {name: Module.parse(source) for name, source in sources.items()}
        self.calls = [(module, *found) for module in self.modules.values() for found in _calls(module.tree)]
        self.calls_of: defaultdict[ast.FunctionDef | None, list[Call]] = defaultdict(list)  # methods are not followed
        for module, caller, call in self.calls:
            if isinstance(call.func, ast.Name) and (function := self._definition(module, call.func.id)):
                self.calls_of[function].append((module, caller, call))

    def errors(self) -> dict[str, dict[str, list[Details]]]:
        """Class -> message -> what the rest says, for each way to reach the message."""
        found: dict[str, dict[str, list[Details]]] = defaultdict(lambda: defaultdict(list))
        for module, function, call in self.calls:
            parts = {keyword.arg: keyword.value for keyword in call.keywords}
            if isinstance(call.func, ast.Name) and call.args and set(DETAILS) <= parts.keys():
                for scope in self.scopes(module, function):
                    cls = self._class(call.func.id, scope)
                    for what in self.texts(call.args[0], scope):
                        found[cls][what].append(tuple(tuple(self.texts(parts[name], scope)) for name in DETAILS))
        return found

    def scopes(self, module: Module, function: ast.FunctionDef | None) -> list[Scope]:
        """One scope for each call of the function in the package, or a single one if there is none."""
        found = [
            Scope(module, function, _arguments(function, Scope(module), call, scope))
            for other, caller, call in self.calls_of[function]
            if function is not None and caller is not function
            for scope in self.scopes(other, caller)
        ]
        return found or [Scope(module, function)]

    def _home(self, module: Module, name: str) -> tuple[Module, str]:
        """Where a name is defined, and as what: in another module if it was imported from there."""
        home, _, original = module.names.get(name, "").rpartition(".")
        return self._home(self.modules[home], original) if home in self.modules else (module, name)

    def _definition(self, module: Module, name: str) -> ast.FunctionDef | None:
        home, original = self._home(module, name)
        return home.functions.get(original)

    def _class(self, name: str, scope: Scope) -> str:
        """The class that a name stands for: itself, or what a parameter was given."""
        for value, other in scope.values(name):
            return self._class(ast.unparse(value), other)
        return name

    def texts(self, node: ast.expr, scope: Scope) -> list[str]:
        """The texts that an expression may give, with placeholders for what is not known."""
        return list(dict.fromkeys(self._known(node, scope) or [f"`<{_placeholder(node)}>`"]))

    def _known(self, node: ast.expr, scope: Scope) -> list[str] | None:
        """The texts that an expression may give, or None if it is no text of the source."""
        match node:
            case ast.JoinedStr(values=parts):
                return self._joined(parts, scope)
            case ast.FormattedValue(value=value, conversion=conversion):
                known = self._known(value, scope)
                return list(map(repr, known)) if known and conversion == ord("r") else known
            case ast.IfExp(body=body, orelse=other):
                known = self._known(body, scope) or self._known(other, scope)
                return [*self.texts(body, scope), *self.texts(other, scope)] if known else None
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                number = isinstance(right, ast.Constant) and isinstance(right.value, int)
                return None if number else self._joined([left, right], scope)
            case ast.Call(func=ast.Name(id=name)) if name not in TRANSPARENT:
                return self._returned(name, scope) or self._evaluated(node, scope)
            case ast.Call(func=ast.Attribute(value=ast.Constant(), attr="join")):
                return self._evaluated(node, scope) or [f"`<{_placeholder(node)}>`"]
            case ast.BoolOp(op=ast.Or(), values=[first, *_]):
                return self._known(first, scope)
            case ast.Attribute(value=ast.Name(id=name), attr="__name__") if scope.values(name):
                return [self._class(name, scope)]
            case ast.Name(id=name):
                known = self._all_known(scope.values(name)) or []
                bare = not any(PLACEHOLDER.sub("", text) for text in known)  # then its own name says more
                return self._evaluated(node, scope) if bare else known
        return self._evaluated(node, scope)

    def _joined(self, parts: Iterable[ast.expr], scope: Scope) -> list[str]:
        choices = itertools.product(*(self.texts(part, scope) for part in parts))
        return ["".join(choice).replace(">``<", "><") for choice in choices]

    def _returned(self, name: str, scope: Scope) -> list[str] | None:
        module, original = self._home(scope.module, name)
        function = module.functions.get(original)
        returns = [node.value for node in ast.walk(function or ast.Pass()) if isinstance(node, ast.Return)]
        return self._all_known([(value, Scope(module, function)) for value in returns if value])

    def _all_known(self, values: list[tuple[ast.expr, Scope]]) -> list[str] | None:
        known = [self._known(value, scope) for value, scope in values]
        return [text for texts in known for text in texts or ()] if all(known) else None

    def _evaluated(self, node: ast.expr, scope: Scope) -> list[str] | None:
        value = self._value(node, scope)
        return [str(value)] if isinstance(value, str | int) else None

    def _value(self, node: ast.expr, scope: Scope) -> Any:
        """The value of an expression of constants, such as `", ".join(map(repr, NAMES))`, or None."""
        match node:
            case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
                return ast.literal_eval(choices)
            case ast.Dict(keys=keys):  # messages list the keys
                return tuple(key.value for key in keys if isinstance(key, ast.Constant)) or None
            case ast.BinOp(left=left, op=ast.BitOr(), right=right):  # of two such dicts
                first, second = self._value(left, scope), self._value(right, scope)
                return None if first is None or second is None else first + second
            case ast.Subscript():  # which entry, only the run tells
                return None
        parts = list(ast.walk(node))
        if any(isinstance(part, ast.Attribute) and not isinstance(part.value, ast.Constant) for part in parts):
            return None  # methods of texts only
        names = [part for part in parts if isinstance(part, ast.Name)]
        bound = {name.id for name in names if isinstance(name.ctx, ast.Store)}
        values = {"__builtins__": {}, "map": map, "str": str, "repr": repr, "get_args": tuple}
        for name in {name.id for name in names} - bound - values.keys():
            if (value := self._constant(name, scope)) is None:
                return None
            values[name] = value
        value = eval(compile(ast.Expression(node), "<constant>", "eval"), values)
        return None if value in ([], ()) else value  # a list that is still to be filled

    def _constant(self, name: str, scope: Scope) -> Any:
        for value, other in scope.values(name):
            return self._value(value, other)
        home, original = self._home(scope.module, name)
        return None if home is scope.module else self._constant(original, Scope(home))


def _calls(tree: ast.AST, function: ast.FunctionDef | None = None) -> Iterator[tuple[ast.FunctionDef | None, ast.Call]]:
    """Every call below a node, each with the function that holds it."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Call):
            yield function, node
        yield from _calls(node, node if isinstance(node, ast.FunctionDef) else function)


def _parameters(function: ast.FunctionDef) -> list[str]:
    return [argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)]


def _arguments(function: ast.FunctionDef, home: Scope, call: ast.Call, scope: Scope) -> Arguments:
    """The arguments of a call of the function; its defaults are read where it is defined."""
    spec, names = function.args, _parameters(function)
    defaults = [None] * (len(spec.args) - len(spec.defaults)) + spec.defaults + spec.kw_defaults
    found: Arguments = {name: (value, home) for name, value in zip(names, defaults, strict=True) if value}
    found |= {name: (value, scope) for name, value in zip(names, call.args, strict=False)}
    return found | {keyword.arg: (keyword.value, scope) for keyword in call.keywords if keyword.arg}


def _assigned(function: ast.FunctionDef, name: str) -> Iterator[ast.expr]:
    """What a function assigns to a name, also by a loop over a literal."""
    for node in ast.walk(function):
        match node:
            case ast.Assign(targets=[ast.Name(id=target)], value=value) if target == name:
                yield value
            case ast.For(target=ast.Name(id=target), iter=ast.Tuple(elts=values)) if target == name:
                yield from values


def _mentions(node: ast.expr, name: str) -> bool:
    return any(isinstance(part, ast.Name) and part.id == name for part in ast.walk(node))


def _placeholder(node: ast.expr) -> str:
    """A word for a value that only a run can tell."""
    match node:
        case (
            ast.Name(id=name)
            | ast.Attribute(attr=name)
            | ast.Call(func=ast.Name(id="getattr"), args=[_, ast.Constant(value=str(name)), *_])
            | ast.Call(func=ast.Attribute(value=ast.Name(id="Path"), attr=name))
        ) if not name.startswith("__"):
            return name.strip("_").lower()
        case ast.Call(func=ast.Name(id="len"), args=[value]):
            return f"number of {_placeholder(value)}"
        case ast.Call(func=ast.Name(id="type"), args=[value]):
            return f"type of {_placeholder(value)}"
        case (
            ast.Call(func=ast.Name(id="map"), args=[_, value])
            | ast.Call(args=[value, *_])
            | ast.Call(func=ast.Attribute(value=value))
            | ast.Attribute(value=value)
            | ast.Subscript(value=value)
            | ast.FormattedValue(value=value)
            | ast.BoolOp(values=[value, *_])
            | ast.BinOp(left=value)
            | ast.GeneratorExp(generators=[ast.comprehension(iter=value)])
        ):
            return _placeholder(value)
    return "..."


def page(sources: Mapping[str, str], classes: str) -> str:
    """The page, in Markdown, for sources by module name and the source of the error classes."""
    errors = Package(sources).errors()
    parts = [INTRO]
    for cls in ast.parse(classes).body:
        if isinstance(cls, ast.ClassDef) and cls.name in errors:
            parts.append(f"## {cls.name}\n\n{ast.get_docstring(cls)}\n")
            parts += [_section(what, errors[cls.name][what]) for what in sorted(errors[cls.name], key=_sort_key)]
    return "\n".join(parts)


def _section(what: str, causes: list[Details]) -> str:
    lines = [f"### {_escape(what)}", ""]
    for cause in dict.fromkeys(causes):
        got, expected, cure = (" *or* ".join(map(_escape, choices)) for choices in cause)
        lines += [f"- Got: {got}", f"    - Expected: {expected}", f"    - **Cure:** {cure}"]
    return "\n".join([*lines, ""])


def _sort_key(what: str) -> tuple[str, str]:
    return re.sub(r"\W", "", PLACEHOLDER.sub("", what)).lower(), what


def _escape(text: str) -> str:
    """Keeps Markdown from reading signs of a message as its own, outside code."""
    parts = re.split(r"(``.+?``|`[^`]*`)", text)
    parts[::2] = [re.sub(r"([*<\\]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


def current_page() -> str:
    """The page for the package as it is now."""
    files = sorted((ROOT / "pera_lightning").rglob("*.py"))
    names = (".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files)
    sources = {name: file.read_text("utf-8") for name, file in zip(names, files, strict=True)}
    return page(sources, sources["pera_lightning.errors"])


if __name__ == "__main__":
    PAGE.write_text(current_page(), encoding="utf-8")
