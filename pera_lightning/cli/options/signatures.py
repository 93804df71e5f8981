"""The options of a class or function, read from its source: importing lightning or torch would take seconds."""

from __future__ import annotations

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path


@cache
def parameters(module: str, name: str) -> dict[str, str]:
    """The parameters of a function, or of a class's `__init__` or method, with their annotations as they are written.

    What `**options` hands to a base class that is imported by name counts too.

    Args:
        module: Dotted name of the module that defines it.
        name: Of the function or class, or `Class.method`.

    Returns:
        Name -> annotation, "" where there is none; empty where the source cannot be found.
    """
    tree = _tree(module)
    owner, _, method = name.partition(".")
    found = _definition(tree.body, owner) if tree is not None else None
    if tree is None or found is None:
        return {}
    if isinstance(found, ast.FunctionDef):
        return _named(found)
    function = _definition(found.body, method or "__init__")
    own = _named(function) if isinstance(function, ast.FunctionDef) else {}
    hands_on = not isinstance(function, ast.FunctionDef) or function.args.kwarg is not None
    return (_of_bases(tree, found) if hands_on else {}) | own


def _named(function: ast.FunctionDef) -> dict[str, str]:
    given = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return {one.arg: ast.unparse(one.annotation) if one.annotation else "" for one in given if one.arg != "self"}


def _of_bases(tree: ast.Module, found: ast.ClassDef) -> dict[str, str]:
    homes = {
        alias.asname or alias.name: (str(node.module), alias.name)
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    names = [base.id for base in found.bases if isinstance(base, ast.Name) and base.id in homes]
    return {key: value for name in reversed(names) for key, value in parameters(*homes[name]).items()}


def _definition(body: list[ast.stmt], name: str) -> ast.FunctionDef | ast.ClassDef | None:
    kinds = (ast.FunctionDef, ast.ClassDef)
    return next((node for node in body if isinstance(node, kinds) and node.name == name), None)


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
