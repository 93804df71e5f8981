"""Values that an option of a plain type cannot have: a word where a number belongs, a choice that there is not."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence

import yaml

from pera_lightning.cli.options.given import Given
from pera_lightning.cli.options.signatures import Parameter
from pera_lightning.did_you_mean import did_you_mean, near
from pera_lightning.errors import ConfigError

_PLAIN = {"int": "a whole number", "float": "a number", "bool": "true or false"}


def check_values(given: Sequence[Given], known: Mapping[str, Parameter]) -> None:
    """Refuse values that no reading makes one of the option's type; what may be right is left to the parser.

    Args:
        given: What was given.
        known: The options there are. Types other than numbers, yes or no and literals are passed over.

    Raises:
        ConfigError: An option cannot have its value.
    """
    for one in given:
        kinds = _kinds(known[one.key].annotation) if one.key in known else None
        if kinds is None or one.value is None or "${" in one.value or any(_is_a(kind, one.value) for kind in kinds):
            continue
        choices = [str(choice) for kind in kinds if isinstance(kind, tuple) for choice in kind]
        wanted = [_PLAIN[kind] for kind in kinds if isinstance(kind, str) and kind in _PLAIN]
        raise ConfigError(
            f"{one.key} cannot have this value.",
            got=f"{one.place} {one.value}" if one.is_word else f"{one.key} = {one.value} ({one.place})",
            expected=" or ".join([*wanted, *choices]),
            fix=did_you_mean(near(one.value, choices), "correct the value; --help says what the option does"),
        )


def _kinds(annotation: str) -> list[str | tuple[object, ...]] | None:
    """The members of a type, literals as a tuple of their values; None where one is of another kind."""
    try:
        return _members(ast.parse(annotation, mode="eval").body)
    except (SyntaxError, ValueError):
        return None


def _members(node: ast.expr) -> list[str | tuple[object, ...]]:
    match node:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _members(left) + _members(right)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=inner):
            values = ast.literal_eval(inner)
            return [values if isinstance(values, tuple) else (values,)]
        case ast.Subscript(value=ast.Name(id="Optional"), slice=inner):
            return [*_members(inner), "None"]
        case ast.Subscript(value=ast.Name(id="Union"), slice=ast.Tuple(elts=parts)):
            return [member for part in parts for member in _members(part)]
        case ast.Constant(value=None):
            return ["None"]
        case ast.Name(id=name) if name in _PLAIN:
            return [name]
    raise ValueError(ast.unparse(node))


def _is_a(kind: str | tuple[object, ...], value: str) -> bool:
    read = _read(value)
    if isinstance(kind, tuple):
        return value in map(str, kind) or read in kind
    if kind == "None":
        return read is None
    if kind == "bool":
        return isinstance(read, bool)
    # Which numbers count as whole is the parser's.
    return not isinstance(read, bool) and _is_number(value)


def _read(value: str) -> object:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True
