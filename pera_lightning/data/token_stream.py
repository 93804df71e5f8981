"""Token ids of a text that grows piece by piece, with no token across two pieces."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


class TokenStream:
    """Appends pieces of a text and keeps its ids: those of the whole text where its tokens end where the pieces do.

    Otherwise the piece is tokenised by itself, and so are all that follow. A piece costs the text since the last
    special token before it, not the whole: at a special token tokenizers begin anew.

    Args:
        ids_of: The ids of a text.
        restarts: Ids of special tokens -> what they look like.
    """

    def __init__(self, ids_of: Callable[[str], list[int]], restarts: Mapping[int, str]) -> None:
        self.ids: list[int] = []
        self._ids_of = ids_of
        self._restarts = restarts
        # The text since the last restart, and where its ids begin.
        self._recent, self._start = "", 0
        self._parted = False

    def add(self, piece: str) -> list[int]:
        """Appends a piece; returns its ids."""
        added = self._ids_of_next(piece)
        self.ids += added
        self._recent += piece
        self._restart(len(added))
        return added

    def _ids_of_next(self, piece: str) -> list[int]:
        if not self._parted:
            known, whole = self.ids[self._start :], self._ids_of(self._recent + piece)
            if whole[: len(known)] == known:
                return whole[len(known) :]
            self._parted = True
        return self._ids_of(piece)

    def _restart(self, added: int) -> None:
        """Forgets the text before the last special token among those that were added."""
        new = range(len(self.ids) - 1, max(self._start, len(self.ids) - added - 1), -1)
        special = next((at for at in new if self.ids[at] in self._restarts), None)
        place = -1 if special is None else self._recent.rfind(self._restarts[self.ids[special]])
        if special is not None and place > 0:
            self._recent, self._start = self._recent[place:], special


def restarts_of(tokenizer: Any) -> dict[int, str]:
    """The special tokens at which a tokenizer begins anew, whatever stands around them."""
    added = tokenizer.added_tokens_decoder.items()
    return {
        id: token.content
        for id, token in added
        if token.special and token.content and not (token.single_word or token.normalized)
    }
