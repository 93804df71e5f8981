"""Damage to JSON: its values, its structure and its text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from tests.hostile.mutations.files import damage_bytes, damage_file

Spot = tuple[Any, Any]
"""A list or dict, and an index or key of it."""
_DIGITS = "@digits@"
_DEEP = "@deep@"
_NUMBERS: tuple[Any, ...] = (
    *(0, 1, -1, 2, 3, 4, 5, 8, 9, 17, 250, 4097, 40_000, 10**6, 10**9, 2**31, 2**32 + 1, 2**63, -(2**63), 2**64),
    *(10**30, 0.5, -0.5, 1.5, 2.0, -0.0, 1e-320, 1e-45, 1e-8, 1e8, 1e30, 1e39, 1e300, 1e308, -1e308),
    *(float("nan"), float("inf"), float("-inf")),
)
_TEXTS = (
    *("", " ", "a", "none", "full", "auto", "None", "true", "8", "1e5", "nan", "\x00", "\x1b[31mred\x1b[0m", "\n---\n"),
    *("\ud800", "é", "\u202e", "a" * 5000, "a" * 200_000, "../../../etc/passwd", "/dev/zero", "/dev/stdin", "."),
    *(r"(([a-z_0-9]+\.?)+)+!", r"(a|a)*$", "(" * 200, "[", "(?R)", r"\1", ".*", "(?:a?){60}a{60}", "x{1,100000}"),
    *("s3://bucket/x", "file:///etc/passwd", "http://127.0.0.1:9/x", "{{ 1 }}", "%s%n", "__class__", "constructor"),
)


def hostile_value(random: Random, old: Any = None) -> Any:
    """Something that does not belong there, often near to what does."""
    near = _near(old)
    choice = random.random()
    if near and choice < 0.35:
        return random.choice(near)
    if choice < 0.6:
        return random.choice(_NUMBERS)
    if choice < 0.75:
        return random.choice(_TEXTS)
    return random.choice(_other_things(random, old))


def _near(old: Any) -> Sequence[Any]:
    if isinstance(old, bool):
        return (not old, int(old), str(old), None)
    if isinstance(old, (int, float)):
        return (
            old + 1,
            old - 1,
            -old,
            2 * old,
            old * 1000,
            float(old),
            str(old),
            [old],
            {"a": old},
            old / 2,
            bool(old),
        )
    if isinstance(old, str):
        return (old + "x", old[:-1], old.upper(), old + "\n", [old], {old: old}, old + "." + old, f" {old}")
    if isinstance(old, list):
        return ([*old, *old], old[::-1], old[1:], [old], dict.fromkeys(map(str, old)), str(old), [*old, None])
    return (list(old), str(old), [old], {}) if isinstance(old, dict) else ()


def _other_things(random: Random, old: Any) -> tuple[Any, ...]:
    count = random.choice([1, 3, 1000, 200_000])
    return (
        *(None, True, False, [], {}, [[]], [None], [None] * count, ["a"] * count, list(range(count)), [0.5] * count),
        *({"": old}, {"a": {"b": {"c": old}}}, {str(i): i for i in range(count)}, [old] * 3, _DIGITS, _DEEP, [_DIGITS]),
    )


def spots(value: Any) -> list[Spot]:
    """Every place in it."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = []
    for key, entry in inner:
        found.append((value, key))
        found += spots(entry)
    return found


def _drawn(random: Random, value: Any) -> Spot | None:
    """A place: of the outer ones as often as of the many inner ones."""
    container, chosen = value, None
    while isinstance(container, (dict, list)) and container:
        key = random.choice(list(container)) if isinstance(container, dict) else random.randrange(len(container))
        chosen = (container, key)
        container = container[key]
        if random.random() < 0.3:
            break
    return chosen


def _replace(random: Random, value: Any) -> str:
    found = _drawn(random, value)
    if found is None:
        return "nothing"
    container, key = found
    old = container[key]
    container[key] = hostile_value(random, old)
    return f"{key!r}: {_short(old)} -> {_short(container[key])}"


def _remove(random: Random, value: Any) -> str:
    found = _drawn(random, value)
    if found is None:
        return "nothing"
    container, key = found
    del container[key]
    return f"without {key!r}"


def _rename(random: Random, value: Any) -> str:
    found = _drawn(random, value)
    if found is None or isinstance(found[0], list):
        return _replace(random, value)
    container, key = found
    new = random.choice([key + "x", key.upper(), key + ".", "", "a." + key, key[1:], random.choice(_TEXTS), key * 50])
    container[new] = container.pop(key)
    return f"{key!r} renamed to {new[:80]!r}"


def _swap(random: Random, value: Any) -> str:
    first, second = _drawn(random, value), _drawn(random, value)
    if first is None or second is None:
        return "nothing"
    (one, key), (other, name) = first, second
    one[key], other[name] = other[name], one[key]
    return f"{key!r} and {name!r} swapped"


def _add(random: Random, value: Any) -> str:
    found = _drawn(random, value)
    container = value if found is None else found[0]
    key = random.choice(["x", "__class__", "config", "rank", "layers", "alpha", "target_modules", ""])
    if isinstance(container, list):
        container.insert(0, hostile_value(random))
    else:
        container[key] = hostile_value(random)
    return f"{key!r} added"


def damage_value(random: Random, value: Any) -> str:
    """Damage a value in place; returns what was done."""
    done = random.choices([_replace, _remove, _rename, _swap, _add], [10, 2, 2, 2, 1])[0](random, value)
    return str(done)


def written(value: Any) -> str:
    """As JSON, with numbers and nesting that `json` does not write."""
    text = json.dumps(value, indent=1)
    return text.replace(f'"{_DIGITS}"', "9" * 5000).replace(f'"{_DEEP}"', "[" * 100_000 + "]" * 100_000)


def _duplicated(random: Random, text: str) -> str:
    keys = re.findall(r'"(\w+)": ([\w."]+),', text)
    if not keys:
        return text
    key, _ = random.choice(keys)
    return text.replace("{", f'{{"{key}": {written(hostile_value(random))},', 1)


_TEXT_DAMAGE: dict[str, Callable[[Random, str], bytes]] = {
    "utf-16": lambda random, text: text.encode("utf-16"),
    "byte order mark": lambda random, text: b"\xef\xbb\xbf" + text.encode(),
    "latin-1": lambda random, text: text.replace("a", "é", 2).encode("latin-1", "replace"),
    "cut off": lambda random, text: text[: random.randrange(len(text))].encode(),
    "key twice": lambda random, text: _duplicated(random, text).encode(),
    "nested deeply": lambda random, text: b"[" * random.choice([50, 900, 2000, 100_000]) + text.encode(),
    "no object": lambda random, text: random.choice([b"[]", b"3", b"null", b'"text"', b"1e999", b"9" * 5000, b"NaN"]),
    "nested objects": lambda random, text: b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "comment": lambda random, text: ("// hello\n" + text).encode(),
    "behind it": lambda random, text: (text + text).encode(),
    "nothing": lambda random, text: b"",
    "spaces": lambda random, text: b" " * random.choice([1, 10**6]) + text.encode(),
    "bytes": lambda random, text: damage_bytes(random, text.encode()),
}


def damage_json(random: Random, path: Path, within: Callable[[Any], Any] = lambda value: value) -> str:
    """Damage a JSON file.

    Args:
        random: What decides.
        path: The file.
        within: From the content to the part of it in which values are damaged.

    Returns:
        What was done, in words.
    """
    choice = random.random()
    if choice < 0.03:
        return damage_file(random, path)
    text = path.read_text(encoding="utf-8")
    if choice < 0.2:
        name = random.choice(sorted(_TEXT_DAMAGE))
        path.write_bytes(_TEXT_DAMAGE[name](random, text))
        return f"{path.name}: {name}"
    value = json.loads(text)
    done = [damage_value(random, within(value)) for _ in range(random.choice([1, 1, 1, 1, 2, 3]))]
    # Half of a pair of surrogates has no place in UTF-8; JSON escapes it.
    path.write_text(written(value), encoding="utf-8")
    return f"{path.name}: {'; '.join(done)}"


def _short(value: Any) -> str:
    return repr(value)[:80]
