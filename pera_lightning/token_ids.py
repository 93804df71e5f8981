"""Which tokens `trainable_tokens` names, in plain types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from pera_lightning.errors import ConfigError, shown
from pera_lightning.form_bounds import MAX_NAME, MAX_TOKEN, is_whole

TokenIds = Mapping[str, Sequence[int]] | Sequence[int]
"""Module name suffix -> token ids, or ids alone, which mean the model's input embedding."""


def normalised(tokens: object) -> dict[str, tuple[int, ...]] | tuple[int, ...] | None:
    """The ids in rising order, as tuples.

    Raises:
        ConfigError: An id is no token id or comes twice, or there are none.
    """
    if tokens is None:
        return None
    if not isinstance(tokens, Mapping):
        return _rising("trainable_tokens", tokens)
    names = [name for name in tokens if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME]
    if names or not tokens:
        raise ConfigError(
            "trainable_tokens maps names of embeddings to token ids.",
            got=shown(names[0]) if names else "an empty mapping",
            expected="a mapping such as {'embed_tokens': [32000, 32001]}",
            fix="name an embedding, or give a list of ids for the input embedding; None trains no rows",
        )
    return {name: _rising(f"trainable_tokens[{name!r}]", ids) for name, ids in tokens.items()}


def _rising(field: str, ids: object) -> tuple[int, ...]:
    if isinstance(ids, str) or not isinstance(ids, Sequence) or not ids:
        raise ConfigError(
            f"{field} is a list of token ids.",
            got=shown(ids),
            expected="e.g. [32000, 32001]",
            fix="tokenizer.convert_tokens_to_ids([...]) gives them; None trains no rows",
        )
    for token in ids:
        if not is_whole(token) or not 0 <= token <= MAX_TOKEN:
            raise ConfigError(
                f"{field} holds something that is no token id.",
                got=shown(token),
                expected=f"whole numbers >= 0, at most {MAX_TOKEN:,}",
                fix="tokenizer.convert_tokens_to_ids([...]) gives them",
            )
    rising = tuple(sorted(ids))
    repeated = next((one for one, other in pairwise(rising) if one == other), None)
    if repeated is not None:
        raise ConfigError(
            f"{field} names a token twice.",
            got=f"{repeated} more than once",
            expected="each id once",
            fix="leave the repetition out",
        )
    return rising
