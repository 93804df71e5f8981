"""Rendered conversations, parted into what the assistant reads and writes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pera_lightning.data.chat.row_formats import Message
from pera_lightning.data.chat.template_process import Rendering
from pera_lightning.data.reading.parsed_row import shorten
from pera_lightning.errors import DataError

if TYPE_CHECKING:
    from jinja2.exceptions import TemplateError


class Exchange(NamedTuple):
    """A rendered assistant turn."""

    prompt: str
    """Everything before it."""
    answer: str
    """What the assistant is to write."""
    whole: str
    """The conversation up to and with it, as rendered."""


def renderings_of(messages: Sequence[Message], variables: Mapping[str, Any]) -> list[Rendering]:
    """Of every assistant turn what comes before it, and all up to and with it."""
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    pairs = (
        (
            Rendering(list(messages[:answer]), True, dict(variables)),
            Rendering(list(messages[: answer + 1]), False, dict(variables)),
        )
        for answer in answers
    )
    return list(itertools.chain.from_iterable(pairs))


def exchanges_of(where: str, texts: Sequence[str | TemplateError], *, tail: str, ending: str) -> list[Exchange]:
    """What `renderings_of` a conversation render to, as exchanges.

    Args:
        where: Where its row stands, for messages.
        texts: The texts.
        tail: What the template writes after an answer.
        ending: How much of it the model is to learn.

    Raises:
        DataError: The template has an error instead, or writes an answer elsewhere than behind its prompt.
    """
    exchanges = []
    for prompt, whole in zip(texts[::2], texts[1::2], strict=True):
        if not isinstance(prompt, str):
            raise rejected_by_template(where, str(prompt)) from prompt
        if not isinstance(whole, str):
            raise rejected_by_template(where, str(whole)) from whole
        if not whole.startswith(prompt) or not whole.endswith(tail):
            raise rejected_by_template(where, "the rendered turn does not stand between prompt and end of turn")
        exchanges.append(Exchange(prompt, whole[len(prompt) :].removesuffix(tail) + ending, whole))
    return exchanges


def each_continues_the_last(exchanges: Sequence[Exchange]) -> bool:
    """Whether every prompt begins with the prompt and the answer before it."""
    return all(
        following.prompt.startswith(earlier.prompt + earlier.answer)
        for earlier, following in itertools.pairwise(exchanges)
    )


def without_first_exchanges(messages: Sequence[Message], count: int) -> list[Message]:
    """The conversation without its turns up to assistant turn number `count`, from 1; the system message stays."""
    start = 1 if messages[0]["role"] == "system" else 0
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    return [*messages[:start], *messages[answers[count - 1] + 1 :]]


def rejected_by_template(where: str, reason: str) -> DataError:
    """The error of a conversation that a template cannot render."""
    return DataError(
        f"{where}: the chat template does not accept this conversation.",
        got=shorten(reason),
        expected="turns in the order the template knows (usually user and assistant in turn)",
        fix="correct the row, set on_bad_row: skip to leave such rows out, or set use_chat_template: false",
    )
