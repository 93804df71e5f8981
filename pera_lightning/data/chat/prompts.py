"""Conversations turned into token ids with the assistant's answers marked, through the chat template.

The mask does not rely on the `{% generation %}` keyword, which most templates lack. Instead the template is
rendered with and without a turn: the rendered prompt (generation prompt included) must be the beginning of
the rendered whole, and what follows is the answer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pera_lightning.data.chat.chat_template import ChatTemplate
from pera_lightning.data.chat.conversations import Conversation
from pera_lightning.data.chat.exchanges import (
    Exchange,
    each_continues_the_last,
    exchanges_of,
    rejected_by_template,
    renderings_of,
    without_first_exchanges,
)
from pera_lightning.data.chat.left_out import LeftOut
from pera_lightning.data.chat.row_formats import Message
from pera_lightning.data.examples import IGNORE_INDEX, Example, truncate
from pera_lightning.data.reading.parsed_row import shorten
from pera_lightning.data.token_stream import TokenStream, restarts_of
from pera_lightning.errors import ConfigError, DataError
from pera_lightning.loading.tokenizer_trial import while_tokenising
from pera_lightning.option_checks import check_flags

if TYPE_CHECKING:
    from jinja2.exceptions import TemplateError
    from transformers import PreTrainedTokenizerBase

PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '### ' + message['role'] | capitalize + ':\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{{ '\n\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\n' }}{% endif %}"
)
"""The template (Jinja) of tokenizers without a chat template: `### User:`, `### Assistant:` and eos."""

ALPACA_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}"
    "{{ 'Below is an instruction that describes a task. Write a response that appropriately completes the request.' }}"
    "{{ '\n\n### Instruction:\n' + message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ '### Response:\n' + message['content'] + eos_token + '\n\n' }}"
    "{% else %}{{ message['content'] + '\n\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
)
"""The template (Jinja) of Alpaca, which LLM-Adapters uses too, for rows without an input: `### Instruction:`, eos."""

_PROBE = "9f0c5e"
_RENDERED_AT_ONCE = 32
"""Conversations."""


class _Tokens(NamedTuple):
    """Exchanges as tokens, each of which continues the one before."""

    ids: list[int]
    labels: list[int]
    ends: list[int]
    """Tokens up to the end of every exchange."""


class ChatEncoder:
    """Encodes conversations for one tokenizer.

    Labelled are the assistant's turns, each up to and including its end-of-turn token (`stop_id`; the eos
    token where the template has none), so that the model learns to stop. The text is rendered with all
    special tokens, and tokenised without adding any.

    Args:
        tokenizer: A tokenizer of transformers.
        max_length: Most tokens of an example.
        use_chat_template: Use the tokenizer's chat template where it has one, else `PLAIN_TEMPLATE`.
        system_prompt: System message of conversations that have none of their own; it takes the place of
            the template's default one. `None`: as the template has it.
        template: A template (Jinja) to use in any case, such as `ALPACA_TEMPLATE`.

    Raises:
        ConfigError: If the template cannot be used, the tokenizer has no token to stop with, or
            `max_length` leaves no room for an answer.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        use_chat_template: bool = True,
        system_prompt: str | None = None,
        template: str | None = None,
    ) -> None:
        check_flags(use_chat_template=use_chat_template)
        self.max_length = max_length
        self._tokenizer = tokenizer
        self._system_prompt = system_prompt
        has_template = bool(getattr(tokenizer, "chat_template", None))
        # None is the tokenizer's own.
        own = template or (None if use_chat_template and has_template else PLAIN_TEMPLATE)
        self._template = ChatTemplate(tokenizer, own)
        self._left_out = LeftOut(self._template)
        self._restarts = restarts_of(tokenizer)
        # Which text is tokenised, for messages.
        self._where = "the chat template"
        # What the template writes after an answer, and how much of it the model is to learn.
        self._tail = self._probe_template()
        stop = self._find_stop_token()
        self._ending = self._tail[: self._tail.index(stop) + len(stop)] if stop in self._tail else ""
        self.stop_id = self._ids(stop)[-1]

    def encode(self, conversation: Conversation) -> list[Example]:
        """Encodes a conversation: one example in which every assistant turn is labelled.

        Templates that render an earlier assistant turn differently once others follow (for example without
        its reasoning) give one example for each turn, with the prompt the model will see.

        Raises:
            DataError: If the template does not accept the conversation, or leaves out a part of it.
        """
        [found] = self.encode_all([conversation])
        if isinstance(found, DataError):
            raise found
        return found

    def encode_all(self, conversations: Iterable[Conversation]) -> Iterator[list[Example] | DataError]:
        """Encodes conversations as `encode`, faster; instead of raising an error it yields it."""
        remaining = iter(conversations)
        while batch := list(itertools.islice(remaining, _RENDERED_AT_ONCE)):
            messages = [self._with_system_prompt(conversation.messages) for conversation in batch]
            renderings = [
                renderings_of(own, conversation.variables) for conversation, own in zip(batch, messages, strict=True)
            ]
            texts = iter(self._template.render_all([rendering for own in renderings for rendering in own]))
            for conversation, own, count in zip(batch, messages, map(len, renderings), strict=True):
                self._where = conversation.where
                try:
                    exchanges = self._checked(conversation, list(itertools.islice(texts, count)))
                    yield self._encode(conversation, own, exchanges)
                except DataError as error:
                    yield error

    def _encode(self, conversation: Conversation, messages: list[Message], exchanges: list[Exchange]) -> list[Example]:
        self._left_out.refuse(conversation, messages, exchanges)
        if not each_continues_the_last(exchanges):
            return [self._fit(conversation, messages, self._tokenise([exchange])) for exchange in exchanges]
        tokens = self._tokenise(exchanges)
        if len(exchanges) == 1 or len(tokens.ids) <= self.max_length:
            return [self._fit(conversation, messages, tokens)]
        messages = self._last_that_fit(conversation, messages, tokens)
        example = self._fit(conversation, messages, self._tokenise(self._exchanges(conversation, messages)))
        return [Example(example.input_ids, example.labels, example.prompt_cut, answer_cut=True)]

    def encode_prompt(self, messages: Sequence[Message], variables: Mapping[str, Any] | None = None) -> list[int]:
        """Returns the ids a model is to continue with the assistant's next answer.

        Args:
            messages: The conversation so far.
            variables: What the template gets beside it, as in a `Conversation`.

        Raises:
            DataError: If the template does not accept the conversation.
        """
        from jinja2.exceptions import TemplateError

        try:
            prompt = self._template.render(self._with_system_prompt(list(messages)), variables, generation_prompt=True)
        except TemplateError as error:
            raise rejected_by_template("the conversation", str(error)) from error
        self._where = "the conversation"
        return self._ids(prompt)

    def _last_that_fit(self, conversation: Conversation, messages: list[Message], tokens: _Tokens) -> list[Message]:
        """Leaves out as few exchanges at the beginning as possible, and never the last one."""
        last, known = len(tokens.ends) - 1, dict[int, int]()

        def fits_without(count: int) -> bool:
            if count not in known:
                rest = without_first_exchanges(messages, count)
                known[count] = len(self._tokenise(self._exchanges(conversation, rest)).ids)
            return count == last or known[count] <= self.max_length

        def own_length_without(count: int) -> int:
            return len(tokens.ids) - tokens.ends[count - 1]

        # The tokens of what is left are known but for those of the system message, which it says when rendered once.
        count, system = 1, 0
        while True:
            right = (n for n in range(count, last) if own_length_without(n) + system <= self.max_length)
            count = next(right, last)
            if fits_without(count):
                break
            system, count = known[count] - own_length_without(count), count + 1
        while count > 1 and fits_without(count - 1):
            count -= 1
        return without_first_exchanges(messages, count)

    def _probe_template(self) -> str:
        """Checks that the template can be used and returns what it writes after an answer."""
        from jinja2.exceptions import TemplateError

        question = self._with_system_prompt([{"role": "user", "content": "?"}])
        try:
            prompt = self._template.render(question, generation_prompt=True)
            whole = self._template.render([*question, {"role": "assistant", "content": _PROBE}])
        except TemplateError as error:
            raise _template_error(f"the template's error {shorten(error)}", "a user turn and an answer") from error
        if not whole.startswith(prompt) or _PROBE not in whole[len(prompt) :]:
            raise _template_error(
                f"{shorten(prompt[-40:])!r} before and {shorten(whole[-40:])!r} with the answer",
                "a generation prompt that is the beginning of the rendered answer",
            )
        if self._system_prompt is not None and self._system_prompt.strip() not in prompt:
            raise _template_error("a template that leaves the system_prompt out", "one that writes system messages")
        if len(self._ids(prompt)) + 2 > self.max_length:
            raise ConfigError(
                "max_length leaves no room for an answer.",
                got=f"{self.max_length}; the template and an empty question take {len(self._ids(prompt))}",
                expected="more tokens than the template alone takes",
                fix="raise max_length",
            )
        return whole.rpartition(_PROBE)[2]

    def _find_stop_token(self) -> str:
        """Returns the template's first special token after an answer, or eos where it has none."""
        added = self._tokenizer.added_tokens_decoder.values()
        special = {token.content for token in added if token.special}
        special.update(self._tokenizer.all_special_tokens)
        present = [token for token in special if token and token in self._tail]
        if present:
            return min(present, key=self._tail.index)
        if self._tokenizer.eos_token is None:
            raise ConfigError(
                "The model could not learn to end its answers.",
                got="a tokenizer without an eos token and a template without an end-of-turn token",
                expected="one of them",
                fix="set tokenizer.eos_token, or a chat template that ends turns with a special token",
            )
        return self._tokenizer.eos_token

    def _exchanges(self, conversation: Conversation, messages: Sequence[Message]) -> list[Exchange]:
        return self._checked(conversation, self._template.render_all(renderings_of(messages, conversation.variables)))

    def _checked(self, conversation: Conversation, texts: Sequence[str | TemplateError]) -> list[Exchange]:
        return exchanges_of(conversation.where, texts, tail=self._tail, ending=self._ending)

    def _ids(self, text: str) -> list[int]:
        with while_tokenising(self._where):
            return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def _tokenise(self, exchanges: Sequence[Exchange]) -> _Tokens:
        stream, text, labels, ends = TokenStream(self._ids, self._restarts), "", list[int](), list[int]()
        for exchange in exchanges:
            question = stream.add(exchange.prompt[len(text) :])
            answer = stream.add(exchange.answer)
            text = exchange.prompt + exchange.answer
            labels += [IGNORE_INDEX] * len(question) + answer
            ends.append(len(stream.ids))
        stop = [] if self._ending else [self.stop_id]
        return _Tokens(stream.ids + stop, labels + stop, ends)

    def _fit(self, conversation: Conversation, messages: Sequence[Message], tokens: _Tokens) -> Example:
        """The tokens as an example; those of a single exchange are cut to the maximum length."""
        ids, labels, _ = tokens
        if len(ids) <= self.max_length:
            return Example(ids, labels)
        prompt_length = labels.count(IGNORE_INDEX)
        keep_first, keep_last = self._template_parts(conversation, messages, ids[:prompt_length])
        return truncate(ids, prompt_length, self.max_length, keep_first=keep_first, keep_last=keep_last)

    def _template_parts(
        self, conversation: Conversation, messages: Sequence[Message], prompt: list[int]
    ) -> tuple[int, int]:
        """Counts the tokens that the template writes before and after the user's words.

        The system message counts as the template's; tokens that join it with the user's words do not.
        """
        system = [message for message in messages[:1] if message["role"] == "system"]
        question = [*system, {"role": "user", "content": _PROBE}]
        unanswered = self._template.render(question, conversation.variables)
        asked = self._template.render(question, conversation.variables, generation_prompt=True)
        first, last = self._ids(unanswered.partition(_PROBE)[0]), self._ids(asked.removeprefix(unanswered))
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, prompt, strict=False))
        return len(list(same)), len(last) if last and prompt[-len(last) :] == last else 1

    def _with_system_prompt(self, messages: list[Message]) -> list[Message]:
        if self._system_prompt is None or messages[0]["role"] == "system":
            return messages
        return [{"role": "system", "content": self._system_prompt}, *messages]


def _template_error(got: str, expected: str) -> ConfigError:
    return ConfigError(
        "The tokenizer's chat template cannot be used.",
        got=got,
        expected=expected,
        fix="leave system_prompt out, turn use_chat_template off (use_chat_template: false in a config, "
        "--use_chat_template false of generate and chat), or give the tokenizer another chat template",
    )
