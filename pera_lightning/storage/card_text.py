"""Values in a model card: in its YAML header, in Markdown, and in Python code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pera_lightning.visible_text import visible

_MARKDOWN = str.maketrans({character: f"&#{ord(character)};" for character in "&<>|`[]*\\$"})
_EMPHASIS = re.compile(r"(?<!\w)_|_(?!\w)")


def in_markdown(value: object) -> str:
    """A value in a line or a cell of a table: no markup, no HTML, no link, no further line or cell."""
    # As entities: a backslash before a vertical bar means one thing to tables and another to text.
    return _EMPHASIS.sub("&#95;", visible(value).translate(_MARKDOWN))


def in_header(values: Mapping[str, Any]) -> list[str]:
    """Lines of the YAML header that model hubs read, each a key and its value.

    Args:
        values: Key -> text, or a list of texts.
    """
    import yaml

    lines = ["---"]
    for key, value in values.items():
        # None: a list on one line.
        flow = None if isinstance(value, list) else False
        options = {"allow_unicode": True, "width": float("inf"), "default_flow_style": flow}
        line = yaml.safe_dump({key: value}, **options)
        # Text of several lines would end the header for hubs that look for a line of hyphens.
        lines.append(line if line[:-1].isprintable() else yaml.safe_dump({key: value}, default_style='"', **options))
    return [*(line.rstrip("\n") for line in lines), "---"]
