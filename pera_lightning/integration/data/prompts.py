"""Conversations turned into token ids with the assistant's answers marked, through the chat template.

The mask does not rely on the `{% generation %}` keyword, which most templates lack. Instead the template is
rendered with and without a turn: the rendered prompt (generation prompt included) must be the beginning of
the rendered whole, and what follows is the answer.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from pera_lightning.errors import ConfigError, DataError
from pera_lightning.integration.answer_loss import IGNORE_INDEX
from pera_lightning.integration.data.conversations import Conversation, Message
from pera_lightning.integration.data.examples import Example, truncate
from pera_lightning.integration.data.rows import shorten
from pera_lightning.option_checks import check_flags

if TYPE_CHECKING:
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


class _Exchange(NamedTuple):
    """A rendered assistant turn: everything before it, and what the assistant is to write."""

    prompt: str
    answer: str


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
        # None makes the tokenizer take its own template.
        self._template = template or (None if use_chat_template and has_template else PLAIN_TEMPLATE)
        # Templates of this file have no bos token: it is put in front where the tokenizer would do so.
        self._bos = "" if self._template is None else _bos_added_by(tokenizer)
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
            DataError: If the template does not accept the conversation.
        """
        messages = self._with_system_prompt(conversation.messages)
        exchanges = self._exchanges(conversation.where, messages)
        if not _each_continues_the_last(exchanges):
            return [self._fit(messages, [exchange]) for exchange in exchanges]
        dropped = False
        while len(exchanges) > 1 and len(self._tokenise(exchanges)[0]) > self.max_length:
            messages = _without_first_exchange(messages)
            exchanges = self._exchanges(conversation.where, messages)
            dropped = True
        example = self._fit(messages, exchanges)
        if dropped:
            return [Example(example.input_ids, example.labels, example.prompt_cut, answer_cut=True)]
        return [example]

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Returns the ids a model is to continue with the assistant's next answer."""
        return self._ids(self._render(self._with_system_prompt(list(messages)), generation_prompt=True))

    def _probe_template(self) -> str:
        """Checks that the template can be used and returns what it writes after an answer."""
        from jinja2.exceptions import TemplateError

        question = self._with_system_prompt([{"role": "user", "content": "?"}])
        try:
            prompt = self._render(question, generation_prompt=True)
            whole = self._render([*question, {"role": "assistant", "content": _PROBE}])
        except TemplateError as error:
            raise _template_error(f"the template's error {error}", "a user turn and an answer") from error
        if not whole.startswith(prompt) or _PROBE not in whole[len(prompt) :]:
            raise _template_error(
                f"{shorten(prompt[-40:])!r} before and {shorten(whole[-40:])!r} with the answer",
                "a generation prompt that is the beginning of the rendered answer",
            )
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

    def _exchanges(self, where: str, messages: Sequence[Message]) -> list[_Exchange]:
        from jinja2.exceptions import TemplateError

        answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        try:
            return [self._exchange(where, messages, index) for index in answers]
        except TemplateError as error:
            raise _rejected_by_template(where, str(error)) from error

    def _exchange(self, where: str, messages: Sequence[Message], answer: int) -> _Exchange:
        prompt = self._render(messages[:answer], generation_prompt=True)
        whole = self._render(messages[: answer + 1])
        if not whole.startswith(prompt) or not whole.endswith(self._tail):
            raise _rejected_by_template(where, "the rendered turn does not stand between prompt and end of turn")
        return _Exchange(prompt, whole[len(prompt) :].removesuffix(self._tail) + self._ending)

    def _render(self, messages: Sequence[Message], generation_prompt: bool = False) -> str:
        text = self._tokenizer.apply_chat_template(
            list(messages),
            tokenize=False,
            add_generation_prompt=generation_prompt,
            chat_template=self._template,
        )
        return f"{self._bos}{text}"

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def _ids_after(self, text: str, ids: list[int], addition: str) -> list[int]:
        """Tokenises what is added to a text of known ids, so that no token spans the boundary."""
        whole = self._ids(text + addition)
        return whole[len(ids) :] if whole[: len(ids)] == ids else self._ids(addition)

    def _tokenise(self, exchanges: Sequence[_Exchange]) -> tuple[list[int], list[int]]:
        """Returns ids and labels of exchanges each of which continues the one before."""
        text, ids, labels = "", list[int](), list[int]()
        for exchange in exchanges:
            question = self._ids_after(text, ids, exchange.prompt[len(text) :])
            ids = ids + question
            answer = self._ids_after(exchange.prompt, ids, exchange.answer)
            text = exchange.prompt + exchange.answer
            ids = ids + answer
            labels += [IGNORE_INDEX] * len(question) + answer
        if not self._ending:
            ids, labels = [*ids, self.stop_id], [*labels, self.stop_id]
        return ids, labels

    def _fit(self, messages: Sequence[Message], exchanges: Sequence[_Exchange]) -> Example:
        """Tokenises the exchanges; if there is only one left, it is cut to the maximum length."""
        ids, labels = self._tokenise(exchanges)
        if len(ids) <= self.max_length:
            return Example(ids, labels)
        prompt_length = labels.count(IGNORE_INDEX)
        keep_first, keep_last = self._template_parts(messages, ids[:prompt_length])
        return truncate(ids, prompt_length, self.max_length, keep_first=keep_first, keep_last=keep_last)

    def _template_parts(self, messages: Sequence[Message], prompt: list[int]) -> tuple[int, int]:
        """Counts the tokens that the template writes before and after the user's words.

        The system message counts as the template's; tokens that join it with the user's words do not.
        """
        system = [message for message in messages[:1] if message["role"] == "system"]
        question = [*system, {"role": "user", "content": _PROBE}]
        unanswered = self._render(question)
        first = self._ids(unanswered.partition(_PROBE)[0])
        last = self._ids(self._render(question, generation_prompt=True).removeprefix(unanswered))
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, prompt, strict=False))
        return len(list(same)), len(last) if last and prompt[-len(last) :] == last else 1

    def _with_system_prompt(self, messages: list[Message]) -> list[Message]:
        if self._system_prompt is None or messages[0]["role"] == "system":
            return messages
        return [{"role": "system", "content": self._system_prompt}, *messages]


def _each_continues_the_last(exchanges: Sequence[_Exchange]) -> bool:
    return all(
        following.prompt.startswith(earlier.prompt + earlier.answer)
        for earlier, following in itertools.pairwise(exchanges)
    )


def _without_first_exchange(messages: Sequence[Message]) -> list[Message]:
    start = 1 if messages[0]["role"] == "system" else 0
    first_answer = next(i for i, message in enumerate(messages) if message["role"] == "assistant")
    return [*messages[:start], *messages[first_answer + 1 :]]


def _bos_added_by(tokenizer: PreTrainedTokenizerBase) -> str:
    adds_bos = tokenizer.bos_token is not None and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    return tokenizer.bos_token if adds_bos else ""


def _template_error(got: str, expected: str) -> ConfigError:
    return ConfigError(
        "The tokenizer's chat template cannot be used for training.",
        got=got,
        expected=expected,
        fix="leave system_prompt out, set use_chat_template: false, or give the tokenizer another chat template",
    )


def _rejected_by_template(where: str, reason: str) -> DataError:
    return DataError(
        f"{where}: the chat template does not accept this conversation.",
        got=shorten(reason),
        expected="turns in the order the template knows (usually user and assistant in turn)",
        fix="correct the row, set on_bad_row: skip to leave such rows out, or set use_chat_template: false",
    )
