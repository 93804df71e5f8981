"""Text from files on the screen: what would steer a terminal, or reorder or hide a line, is shown as an escape."""

from __future__ import annotations

import logging
import re
from collections.abc import MutableMapping
from typing import Any

_STEERING = (
    "\x00-\x1f\x7f-\x9f"  # C0 and C1: line feed, carriage return, escape, bell, ...
    "\u2028-\u202e\u2066-\u2069"  # ends of lines and paragraphs; embeddings, overrides and isolates of direction
    "\ud800-\udfff"  # halves of characters, which cannot be printed
)
_UNSEEN = "\u00ad\u180e\u200b\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb"
# Joiners belong to emoji and to some scripts, and marks of direction to others.
_IN_NAMES = re.compile(f"[{_STEERING}{_UNSEEN}]")
_IN_TEXT = re.compile(f"(?![\n\t])[{_STEERING}]")
_LONGEST = 4000
"""Characters of a name or value; more of it hides the rest of a message."""


def visible(value: object, longest: int = _LONGEST) -> str:
    r"""A name or a value on one line, with `\x1b` for the escape character, `\n` for the end of a line, and so on.

    Args:
        value: What is shown as `str` shows it.
        longest: Characters after which the rest is left out.
    """
    text = str(value)
    if len(text) > longest:
        text = f"{text[:longest]} ... ({len(text):,} characters)"
    return text if text.isprintable() else _IN_NAMES.sub(_escape, text)


def visible_text(text: str) -> str:
    """Text for a person, such as an answer: its lines and tabs stay, and all that belongs to its script.

    Args:
        text: The text, or a part of it.
    """
    return text if text.isprintable() else _IN_TEXT.sub(_escape, text.replace("\r\n", "\n"))


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")


class _VisibleLogger(logging.LoggerAdapter[logging.Logger]):
    """Writes what it gets on one line; of errors of this package, which are made visible themselves, all lines."""

    def log(self, level: int, msg: object, *args: object, **options: Any) -> None:
        if self.isEnabledFor(level):
            options["stacklevel"] = options.get("stacklevel", 1) + 1
            self.logger.log(level, visible(msg), *map(_shown, args), **options)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        return msg, kwargs


def _shown(argument: object) -> object:
    # The name of the class: errors import this.
    own = any(kind.__name__ == "PeraError" for kind in type(argument).__mro__)
    return argument if own or isinstance(argument, int | float) else visible(argument)


def visible_logger(name: str) -> _VisibleLogger:
    """A logger whose lines cannot be forged by names and values in them.

    Args:
        name: Of the module that logs.
    """
    return _VisibleLogger(logging.getLogger(name), {})
