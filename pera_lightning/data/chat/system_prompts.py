"""The system messages of training rows: one that all rows share belongs to the adapter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from pera_lightning.data.chat.conversations import Conversation
from pera_lightning.data.reading.parsed_row import shorten


class SystemPrompts:
    """Counts which system message the rows of a training have.

    Args:
        conversations: The rows.
        default: What those without a message of their own are trained with; None is the chat template's own.
    """

    def __init__(self, conversations: Iterable[Conversation], default: str | None) -> None:
        own = [conversation.own_system_prompt for conversation in conversations]
        self._default = default
        self._any_own = any(text is not None for text in own)
        self._rows = Counter(default if text is None else text for text in own)

    def kept(self) -> dict[str, Any]:
        """What the adapter's folder says of them: fields of `Manifest.chat`."""
        if len(self._rows) <= 1:
            return {"system_prompt": next(iter(self._rows), self._default)}
        kept = {"system_prompt": self._default, "different_system_prompts": len(self._rows)}
        [(text, rows)] = self._rows.most_common(1)
        # What only one row says is that row's data, and no matter of who gets the adapter.
        return kept if text is None or rows == 1 else {**kept, "most_frequent_system_prompt": text}

    def __str__(self) -> str:
        """A part of a line for the log; empty where no row has a message of its own."""
        if not self._any_own:
            return ""
        [(text, rows)] = self._rows.most_common(1)
        if len(self._rows) == 1:
            return f"all rows have the system message {shorten(text)!r}, which the adapter's folder keeps"
        most = "the chat template's own" if text is None else repr(shorten(text))
        return (
            f"rows have {len(self._rows):,} different system messages ({rows:,} of {self._rows.total():,}: {most}), "
            "none of which the adapter's folder can stand for: generate and chat take one by --system_prompt"
        )
