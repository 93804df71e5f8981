"""Patterns for names of modules: their bounds, and how they are matched, which depends on where they come from.

What a user types is matched by `re`, with all that it can. That takes exponential time on some expressions, so nothing
that comes out of a file gets there: such patterns are matched by RE2, in time linear in pattern and name.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

from pera_lightning.errors import ConfigError, shown
from pera_lightning.requirements import require

LONGEST_PATTERN = 1_000
"""Characters of a pattern, and of a name that is matched by one out of a file."""
MOST_EXPRESSIONS = 1_000
"""Patterns of one option that are no plain names."""
_SECONDS = 1.0
"""Of this thread, for all patterns of a file: a step is short, but their number is that of patterns times names."""
_MEMORY = 1 << 20
"""Bytes that RE2 may take for one expression."""
_NAME = re.compile(r"[\w.-]+")
_READ_OTHERWISE = re.compile(r"\{,\d*\}|\[:")
"""To RE2 `a{,3}` is a text and `[[:alpha:]]` a class of letters; to Python the one counts and the other ends early."""

Value = TypeVar("Value")


def is_plain(pattern: str) -> bool:
    """Whether a pattern is a name, and no expression for several."""
    return _NAME.fullmatch(pattern) is not None


def literal(name: str) -> str:
    """A pattern that stands for this name alone."""
    return name if is_plain(name) else re.escape(name)


def check_pattern(field: str, pattern: object) -> None:
    """Raise ConfigError unless `pattern` is a text that a pattern can be."""
    if not isinstance(pattern, str) or not pattern:
        raise ConfigError(
            f"{field} names modules.", got=shown(pattern), expected="a non-empty string", fix="name a layer"
        )
    if len(pattern) > LONGEST_PATTERN:
        raise ConfigError(
            f"{field} holds a pattern that is too long.",
            got=f"{len(pattern):,} characters, which begin {pattern[:40]!r}",
            expected=f"at most {LONGEST_PATTERN:,}",
            fix="name the layers in a list, or write a shorter expression",
        )


def check_count(field: str, patterns: Mapping[str, object]) -> None:
    """Raise ConfigError if there are more expressions than any model needs."""
    found = sum(not is_plain(pattern) for pattern in patterns)
    if found > MOST_EXPRESSIONS:
        raise ConfigError(
            f"{field} holds too many regular expressions.",
            got=f"{found:,}",
            expected=f"at most {MOST_EXPRESSIONS:,}, beside plain names",
            fix="write one expression for many layers",
        )


def check_expression(field: str, pattern: str) -> None:
    """Raise ConfigError unless `re` can read a pattern that a user typed."""
    try:
        re.compile(pattern)
    # A number of repetitions, or groups within groups, beyond what `re` can count.
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(
            f"{field} holds a pattern that is no regular expression.",
            got=f"{pattern!r} ({error})",
            expected="a regular expression matched against whole module names",
            fix="escape special signs with a backslash, or give a list of name suffixes",
        ) from None


def typed_match(pattern: str, name: str) -> bool:
    """Whether an expression that a user typed matches the whole of a name."""
    return re.fullmatch(pattern, name) is not None


class LinearMatcher:
    """Matches the expressions of one file, in bounded time and memory.

    RE2's syntax is that of `re` but for what cannot be matched in linear time (backreferences, looking ahead and
    behind), possessive repetitions, more than 1,000 repetitions; digits and letters are those of ASCII.
    """

    def __init__(self) -> None:
        self._until: float | None = None
        self._compiled: dict[str, Any] = {}

    def full_match(self, pattern: str, name: str) -> bool:
        """Whether an expression matches the whole of a name.

        Raises:
            ConfigError: RE2 is not installed or cannot read the expression, or all this takes too long.
        """
        return self._step(pattern, name, "fullmatch")

    def match(self, pattern: str, name: str) -> bool:
        """The same for the beginning of a name, as `re.match`."""
        return self._step(pattern, name, "match")

    def check_time(self, name: str) -> None:
        """Raise ConfigError if the time for all patterns is over, or a name is longer than any."""
        now = time.thread_time()
        self._until = now + _SECONDS if self._until is None else self._until
        if now > self._until or len(name) > LONGEST_PATTERN:
            raise ConfigError(
                "Matching these patterns would take too long.",
                got=f"a name of {len(name):,} characters" if now <= self._until else f"more than {_SECONDS:g} s",
                expected="patterns as libraries write them, for names of at most 1,000 characters",
                fix="write fewer and simpler patterns into the file, best the names of the layers",
            )

    def _step(self, pattern: str, name: str, how: str) -> bool:
        self.check_time(name)
        try:
            return getattr(self._expression(pattern), how)(name) is not None
        except UnicodeEncodeError:  # half a character, which no name has and no pattern means
            return False

    def _expression(self, pattern: str) -> Any:
        if pattern not in self._compiled:
            require("Matching patterns out of a file", "google-re2")
            import re2

            if _READ_OTHERWISE.search(pattern):
                raise _unreadable(pattern, "RE2 would read '{,' or '[:' otherwise than Python")
            options = re2.Options()
            options.max_mem, options.never_capture, options.log_errors = _MEMORY, True, False
            try:
                self._compiled[pattern] = re2.compile(pattern, options)
            except re2.error as error:
                reason = error.args[0]
                text = reason.decode(errors="replace") if isinstance(reason, bytes) else reason
                raise _unreadable(pattern, text) from None
        return self._compiled[pattern]


def _unreadable(pattern: str, reason: str) -> ConfigError:
    return ConfigError(
        "A pattern out of a file cannot be matched in bounded time.",
        got=f"{pattern!r} ({reason})",
        expected="a regular expression that RE2 can read: no looking ahead or behind, no backreferences",
        fix="write the names of the layers into the file instead, or give the pattern in code",
    )


class FirstMatch(Generic[Value]):
    """PEFT's rule for patterns of a file: the value of the first that matches the end of a name, by whole components.

    To PEFT every pattern is an expression, also a name, whose dots stand for any character. Names are looked up all
    the same, by what is left of them without the dots: a file may have one for each layer.

    Args:
        patterns: Pattern -> value.
        matcher: Matches those that are no plain names.

    Raises:
        ConfigError: A pattern is no text, too long, or there are too many of them.
    """

    def __init__(self, patterns: Mapping[str, Value], matcher: LinearMatcher) -> None:
        # An empty one is at the end of no name that a module has.
        patterns = {pattern: value for pattern, value in patterns.items() if pattern != ""}
        for pattern in patterns:
            check_pattern("a pattern of the file", pattern)
        check_count("the file", patterns)
        self._matcher = matcher
        self._patterns = patterns
        self._values = list(patterns.values())
        self._expressions: list[tuple[int, str]] = []
        # Length -> where the dots are -> name -> its place among the patterns.
        self._names: dict[int, dict[tuple[int, ...], dict[str, int]]] = {}
        for index, pattern in enumerate(patterns):
            if is_plain(pattern):
                dots = tuple(place for place, sign in enumerate(pattern) if sign == ".")
                self._names.setdefault(len(pattern), {}).setdefault(dots, {})[pattern] = index
            else:
                self._expressions.append((index, pattern))

    def value(self, name: str, default: Value) -> Value:
        """The value for a name, or the default.

        Raises:
            ConfigError: An expression cannot be matched, see `LinearMatcher`.
        """
        first = min(self._plain_matches(name), default=len(self._values))
        for index, pattern in self._expressions:
            if index >= first:
                break
            if self._matcher.match(rf"(.*\.)?({pattern})$", name):
                return self._values[index]
        # PEFT looks a name up as it is where nothing matches: one with signs of expressions does not match itself.
        return self._patterns.get(name, default) if first == len(self._values) else self._values[first]

    def _plain_matches(self, name: str) -> Iterator[int]:
        parts = name.split(".")
        for end in (".".join(parts[start:]) for start in range(len(parts))):
            for dots, found in self._names.get(len(end), {}).items():
                self._matcher.check_time(name)
                signs = list(end)
                for place in dots:
                    signs[place] = "."
                if (index := found.get("".join(signs))) is not None:
                    yield index
