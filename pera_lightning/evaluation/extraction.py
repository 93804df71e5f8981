"""The option that a generated text names."""

from __future__ import annotations

import re
from collections.abc import Sequence


def extract_answer(text: str, options: Sequence[str]) -> str | None:
    """Returns the first option that a text names as a word of its own; None where it names none.

    LLM-Adapters takes the first match too, but only in lower case, and inside of words: there "untrue" is "true" and
    "Answer2." is no answer.

    Args:
        text: What the model wrote, without the prompt.
        options: The answers that the question allows, such as `["answer1", "answer2"]`.
    """
    # Longer ones first: of options that begin alike the whole one is named.
    ordered = sorted(options, key=len, reverse=True)
    names = "|".join(f"({re.escape(option)})" for option in ordered)
    found = re.search(rf"(?<![^\W_])(?:{names})(?![^\W_])", text, flags=re.IGNORECASE)
    return None if found is None or found.lastindex is None else ordered[found.lastindex - 1]
