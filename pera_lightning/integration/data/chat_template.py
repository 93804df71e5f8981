"""A chat template at work: conversations rendered, and parted into what the assistant reads and writes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pera_lightning.integration.data.conversations import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Exchange(NamedTuple):
    """A rendered assistant turn."""

    prompt: str
    """Everything before it."""
    answer: str
    """What the assistant is to write."""
    whole: str
    """The conversation up to and with it, as rendered."""


class ChatTemplate:
    """Renders conversations for one tokenizer.

    Args:
        tokenizer: A tokenizer of transformers.
        template: A template (Jinja); None is the tokenizer's own.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str | None) -> None:
        self._tokenizer = tokenizer
        self._template = template
        # Templates of ours have no bos token: it is put in front where the tokenizer would do so.
        self._bos = "" if template is None else _bos_added_by(tokenizer)

    def render(
        self,
        messages: Sequence[Message],
        variables: Mapping[str, Any] | None = None,
        *,
        generation_prompt: bool = False,
    ) -> str:
        """The conversation as text.

        Args:
            messages: The turns.
            variables: What the template gets beside them.
            generation_prompt: End with what the assistant's next turn begins with.

        Raises:
            jinja2.exceptions.TemplateError: The template does not accept them.
        """
        from jinja2.exceptions import TemplateError

        try:
            text = self._tokenizer.apply_chat_template(
                list(messages),
                tokenize=False,
                add_generation_prompt=generation_prompt,
                chat_template=self._template,
                **(variables or {}),
            )
        except TemplateError:
            raise
        except Exception as error:  # whatever a template does with values that it did not expect
            raise TemplateError(f"{type(error).__name__}: {error}") from error
        return f"{self._bos}{text}"


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


def _bos_added_by(tokenizer: PreTrainedTokenizerBase) -> str:
    adds_bos = tokenizer.bos_token is not None and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    return tokenizer.bos_token if adds_bos else ""
