"""A chat template at work: conversations rendered."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pera_lightning.data.chat.row_formats import Message
from pera_lightning.data.chat.template_process import SECONDS, Rendering, render_apart
from pera_lightning.errors import ConfigError
from pera_lightning.loading.tokenizer_trial import while_tokenising

if TYPE_CHECKING:
    from jinja2.exceptions import TemplateError
    from transformers import PreTrainedTokenizerBase

_MOST_DEATHS = 3
"""Renderings that may end their process; each costs a second."""


class ChatTemplate:
    """Renders conversations for one tokenizer.

    What comes with a tokenizer is rendered in a process of its own, with bounds; templates of ours in this one.

    Args:
        tokenizer: A tokenizer of transformers.
        template: A template (Jinja); None is the tokenizer's own.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str | None) -> None:
        self._tokenizer = tokenizer
        self._template = template
        # Templates of ours have no bos token: it is put in front where the tokenizer would do so.
        self._bos = "" if template is None else _bos_added_by(tokenizer)
        self._deaths = 0

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
            jinja2.exceptions.TemplateError: The template does not accept them, or takes too long or too much memory.
            ConfigError: It did so too often.
        """
        [text] = self.render_all([Rendering(list(messages), generation_prompt, dict(variables or {}))])
        if isinstance(text, Exception):
            raise text
        return text

    def render_all(self, renderings: Sequence[Rendering]) -> list[str | TemplateError]:
        """Several at once, which takes less time: the texts, or the errors that `render` would raise.

        Raises:
            ConfigError: The template took too long or too much memory too often.
        """
        if self._template is not None or _renders_itself(self._tokenizer):
            return [self._render_here(rendering) for rendering in renderings]
        found: list[str | TemplateError] = []
        # Which template it is may depend on there being tools.
        for tools, group in itertools.groupby(renderings, lambda rendering: rendering.variables.get("tools")):
            found += self._render_apart(tools, list(group))
        return found

    def _render_apart(self, tools: Any, renderings: list[Rendering]) -> list[str | TemplateError]:
        from jinja2.exceptions import TemplateError

        try:
            template = self._tokenizer.get_chat_template(tools=tools)
            special_tokens = self._tokenizer.special_tokens_map
        except Exception as error:  # several templates, and none of the right name
            return [TemplateError(f"{type(error).__name__}: {error}")] * len(renderings)
        texts = render_apart(template, special_tokens, renderings)
        if texts is not None:
            return [text if isinstance(text, str) else TemplateError(text.reason) for text in texts]
        if len(renderings) > 1:
            return [text for rendering in renderings for text in self._render_apart(tools, [rendering])]
        self._count_death()
        return [TemplateError(f"it takes more than {SECONDS:g} s of computing, or too much memory")]

    def _render_here(self, rendering: Rendering) -> str | TemplateError:
        from jinja2.exceptions import TemplateError

        try:
            text = self._tokenizer.apply_chat_template(
                rendering.messages,
                tokenize=False,
                add_generation_prompt=rendering.generation_prompt,
                chat_template=self._template,
                **rendering.variables,
            )
        except TemplateError as error:
            return error
        except Exception as error:  # whatever a template does with values that it did not expect
            return TemplateError(f"{type(error).__name__}: {error}")
        return f"{self._bos}{text}"

    def _count_death(self) -> None:
        self._deaths += 1
        if self._deaths > _MOST_DEATHS:
            raise ConfigError(
                "The tokenizer's chat template takes too long.",
                got=f"{self._deaths} conversations of more than {SECONDS:g} s of computing each, or of too much memory",
                expected="a template that renders a conversation in milliseconds",
                fix="set use_chat_template: false, give the tokenizer another chat template, or shorten the rows",
            )


def _renders_itself(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer has a way of its own to render, as those of mistral-common: code that was installed."""
    from transformers import PreTrainedTokenizerBase

    own = type(tokenizer).apply_chat_template, type(tokenizer).get_chat_template
    return own != (PreTrainedTokenizerBase.apply_chat_template, PreTrainedTokenizerBase.get_chat_template)


def _bos_added_by(tokenizer: PreTrainedTokenizerBase) -> str:
    with while_tokenising("An empty text"):
        adds_bos = tokenizer.bos_token is not None and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    return tokenizer.bos_token if adds_bos else ""
