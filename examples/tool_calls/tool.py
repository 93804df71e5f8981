"""What a tool is: its name, its arguments and the ways to ask for it."""

from __future__ import annotations

from dataclasses import dataclass

from values import Pool, Split


@dataclass(frozen=True)
class Templates:
    """Ways to ask: commands ("wake me at {time}") take "could you" in front, other sentences do not."""

    commands: tuple[str, ...]
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tool:
    """One tool.

    A template names its arguments in braces; the tool call holds exactly these, in the order of `arguments`.

    Args:
        name: Name of the tool in the tool call.
        arguments: Placeholder in the templates -> values it takes.
        templates: Split -> its templates; no two splits share one.
        share: Training rows for each row of a tool with share 1; times take more practice than names to copy.
    """

    name: str
    arguments: dict[str, Pool]
    templates: dict[Split, Templates]
    share: int = 1
