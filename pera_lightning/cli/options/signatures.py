"""The options of a class or function, read from its source: importing lightning or torch would take seconds."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from docstring_parser import google


@dataclass(frozen=True)
class Parameter:
    """A parameter as it is written.

    Args:
        annotation: Its type, "" without one; names of literals are replaced by what they stand for.
        default: Its default, None where it has to be given.
        help: What the docstring says of it.
    """

    annotation: str = ""
    default: str | None = "None"
    help: str = ""

    @property
    def is_flag(self) -> bool:
        """Whether it is yes or no."""
        return self.annotation in ("bool", "bool | None", "Optional[bool]")


@cache
def parameters(module: str, name: str) -> dict[str, Parameter]:
    """The parameters of a function, or of a class's `__init__` or method.

    What `**options` hands to a base class that is imported by name counts too.

    Args:
        module: Dotted name of the module that defines it.
        name: Of the function or class, or `Class.method`.

    Returns:
        By name; empty where the source cannot be found.
    """
    tree = _tree(module)
    owner, _, method = name.partition(".")
    found = _definition(tree, owner) if tree is not None else None
    if tree is None or found is None:
        return {}
    if isinstance(found, ast.FunctionDef):
        return _named(tree, found, found)
    function = _definition(found, method or "__init__")
    own = (
        _named(tree, function, function if method else found, function) if isinstance(function, ast.FunctionDef) else {}
    )
    hands_on = not isinstance(function, ast.FunctionDef) or function.args.kwarg is not None
    return own | {key: value for key, value in _of_bases(tree, found).items() if key not in own} if hands_on else own


def summary(module: str, name: str) -> str:
    """What the docstring of a function or class says before its sections."""
    tree = _tree(module)
    found = _definition(tree, name) if tree is not None else None
    text = (ast.get_docstring(found) or "") if found is not None else ""
    return re.split(r"\n(?:Args|Returns|Raises):\n", text)[0].strip()


def _named(
    tree: ast.Module, function: ast.FunctionDef, *documented: ast.FunctionDef | ast.ClassDef
) -> dict[str, Parameter]:
    positional = [*function.args.posonlyargs, *function.args.args]
    defaults = [None] * (len(positional) - len(function.args.defaults)) + function.args.defaults
    pairs = [
        *zip(positional, defaults, strict=True),
        *zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True),
    ]
    said = {key: text for node in reversed(documented) for key, text in _argument_texts(node).items()}
    return {
        one.arg: Parameter(
            "" if one.annotation is None else _type(tree, one.annotation),
            None if default is None else _constant(tree, default),
            said.get(one.arg, ""),
        )
        for one, default in pairs
        if one.arg != "self"
    }


def _argument_texts(node: ast.FunctionDef | ast.ClassDef) -> dict[str, str]:
    docstring = ast.get_docstring(node)
    if docstring is None:
        return {}
    return {one.arg_name: " ".join((one.description or "").split()) for one in google.parse(docstring).params}


def _type(tree: ast.Module, annotation: ast.expr) -> str:
    """An annotation as text, with the literals that names in it stand for."""
    text = ast.unparse(annotation).strip("'\"")
    meant = {word: _assigned(tree, word) for word in re.findall(r"\b[A-Z]\w+", text)}
    literals = {word: value for word, value in meant.items() if value is not None and value.startswith("Literal[")}
    return re.sub(r"\b[A-Z]\w+", lambda word: literals.get(word[0], word[0]), text)


def _constant(tree: ast.Module, default: ast.expr) -> str:
    """A default as text; of a name, what it is set to."""
    meant = _assigned(tree, default.id) if isinstance(default, ast.Name) else None
    return meant or ast.unparse(default)


def _assigned(tree: ast.Module, name: str) -> str | None:
    """What a name of a module is set to there, or in the module of ours that it is imported from."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(one, ast.Name) and one.id == name for one in node.targets):
            return ast.unparse(node.value)
    module, original = _imported(tree).get(name, ("", ""))
    home = _tree(module) if module.startswith("pera_lightning") else None
    return None if home is None else _assigned(home, original)


def _imported(tree: ast.Module) -> dict[str, tuple[str, str]]:
    return {
        alias.asname or alias.name: (str(node.module), alias.name)
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def _of_bases(tree: ast.Module, found: ast.ClassDef) -> dict[str, Parameter]:
    homes = _imported(tree)
    names = [base.id for base in found.bases if isinstance(base, ast.Name) and base.id in homes]
    return {key: value for name in reversed(names) for key, value in parameters(*homes[name]).items()}


def _definition(tree: ast.Module | ast.ClassDef, name: str) -> ast.FunctionDef | ast.ClassDef | None:
    kinds = (ast.FunctionDef, ast.ClassDef)
    return next((node for node in tree.body if isinstance(node, kinds) and node.name == name), None)


@cache
def _tree(module: str) -> ast.Module | None:
    package, *parts = module.split(".")
    spec = find_spec(package)
    # `find_spec` of a module within a package would import the package.
    for place in (spec and spec.submodule_search_locations) or ():
        for path in (Path(place, *parts).with_suffix(".py"), Path(place, *parts, "__init__.py")):
            if path.is_file():
                return ast.parse(path.read_text(encoding="utf-8"))
    return None
