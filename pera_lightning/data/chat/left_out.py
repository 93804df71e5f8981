"""What a chat template leaves out of a conversation: every text of the row is looked for in what it renders."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from pera_lightning.data.chat.chat_template import ChatTemplate
from pera_lightning.data.chat.conversations import TEMPLATE_FIELDS, Conversation
from pera_lightning.data.chat.exchanges import Exchange
from pera_lightning.data.chat.row_formats import Message
from pera_lightning.data.reading.parsed_row import shorten
from pera_lightning.errors import DataError

_PROBE = "9f0c5e"
_PLACES = 6
# Templates trim and indent lines in ways of their own, and write the tags of a reasoning themselves.
_PARTS = re.compile(r"\n|</?think(?:ing)?>")
# Names that link calls to results. Their order tells as much, so that most templates do not write them.
_LINKS = frozenset({"id", "type"})
Change = Callable[[Any], bool]
"""Whether another value in the place of the row's changes what is rendered."""


class LeftOut:
    """Refuses conversations of which the template leaves out a part.

    A text counts as rendered if it stands in the rendered turn, or if another text in its place would change what is
    rendered: a template may write it in another way. The texts of an assistant turn are looked for where it is the last
    one: what a template leaves out of earlier turns, such as their reasoning, has been learnt there.

    Args:
        template: The template.
    """

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        # Options of the template that it is known to read.
        self._read: set[str] = set()

    def refuse(self, conversation: Conversation, messages: Sequence[Message], exchanges: Sequence[Exchange]) -> None:
        """Raises for the first field that is not rendered.

        Args:
            conversation: The row.
            messages: Its messages, after a system message that is not the row's perhaps.
            exchanges: What the template makes of them, one for each assistant turn.

        Raises:
            DataError: A part of the row is left out.
        """
        added = len(messages) - len(conversation.messages)
        answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        for name in conversation.variables:
            self._check_variable(conversation, name, messages[: answers[0]], exchanges[0].prompt)
        start, seen = added, ""
        for answer, exchange in zip(answers, exchanges, strict=True):
            new = exchange.prompt.removeprefix(seen)
            for index in range(start, answer):
                change = partial(self._changes, conversation, messages[:answer], index, exchange.prompt)
                # A text that stands in another turn tells nothing of its own.
                seen_in = new if _stands_alone(messages[index], messages[start : answer + 1]) else ""
                _check_turn(f"{conversation.where}, messages[{index - added}]", messages[index], seen_in, change)
            change = partial(self._changes, conversation, messages[: answer + 1], answer, exchange.whole)
            where = f"{conversation.where}, messages[{answer - added}]"
            _check_turn(where, messages[answer], exchange.answer, change)
            start, seen = answer + 1, exchange.prompt + exchange.answer

    def _changes(
        self, conversation: Conversation, turns: Sequence[Message], index: int, rendered: str, message: Message
    ) -> bool:
        changed = self._rendered([*turns[:index], message, *turns[index + 1 :]], conversation.variables)
        # Again: some templates write the time.
        return changed != rendered and changed != self._rendered(turns, conversation.variables)

    def _rendered(self, turns: Sequence[Message], variables: Mapping[str, Any]) -> str | None:
        from jinja2.exceptions import TemplateError

        try:
            return self._template.render(turns, variables, generation_prompt=turns[-1]["role"] != "assistant")
        except TemplateError:
            # It looks at the value.
            return None

    def _check_variable(self, conversation: Conversation, name: str, question: Sequence[Message], prompt: str) -> None:
        variables, value = conversation.variables, conversation.variables[name]

        def changes(other: Any) -> bool:
            changed = {**variables, name: other}
            if other is None:
                del changed[name]
            found = self._rendered(question, changed)
            return found != prompt and found != self._rendered(question, variables)

        if name in TEMPLATE_FIELDS:
            if not changes(None):
                raise _left_out(conversation.where, name, value)
            _check_texts(conversation.where, name, value, prompt, changes)
        elif name not in self._read:
            others = [not value] if isinstance(value, bool) else [_PROBE, None]
            if not any(map(changes, others)):
                raise _left_out(f"{conversation.where}, chat_template_kwargs", name, value)
            self._read.add(name)


def _stands_alone(turn: Message, turns: Sequence[Message]) -> bool:
    text = str(turn.get("content"))
    return not any(text in str(other.get("content")) or text in other["role"] for other in turns if other is not turn)


def _check_turn(where: str, turn: Message, rendered: str, changes: Change) -> None:
    for key in turn:
        if key not in ("role", "content") and not changes({name: turn[name] for name in turn if name != key}):
            raise _left_out(where, key, turn[key])

    def with_another(key: str, value: object) -> bool:
        return changes({**turn, key: value})

    for key, value in turn.items():
        if key != "role":
            _check_texts(where, key, value, rendered, partial(with_another, key))


def _check_texts(where: str, field: str, value: object, rendered: str, changes: Change) -> None:
    for text, put in _texts(value):
        if text in rendered:
            continue
        for part in filter(None, map(str.strip, _PARTS.split(text))):
            if part not in rendered and not all(changes(put(text.replace(part, other))) for other in _others(part)):
                raise _left_out(where, field, part)


def _others(part: str) -> Iterator[str]:
    """Yields another text, and the text without its first and last sign, and without some of its words."""
    yield from (_PROBE, part[1:], part[:-1])
    words = part.split(" ")
    for index in sorted({round(place * (len(words) - 1) / _PLACES) for place in range(_PLACES + 1)}):
        yield " ".join([*words[:index], *words[index + 1 :]])


def _texts(value: object) -> Iterator[tuple[str, Callable[[str], object]]]:
    """Yields every text in a value, with what makes the value with another text in its place."""
    if isinstance(value, str):
        yield value, lambda other: other
    for key, inner in _members(value):
        for text, put in _texts(inner):
            yield text, partial(_with_member, value, key, put)


def _members(value: object) -> list[tuple[Any, object]]:
    if isinstance(value, Mapping):
        return [(key, inner) for key, inner in value.items() if key not in _LINKS]
    return list(enumerate(value)) if isinstance(value, list) else []


def _with_member(value: Any, key: Any, put: Callable[[str], object], text: str) -> object:
    changed = dict(value) if isinstance(value, Mapping) else list(value)
    changed[key] = put(text)
    return changed


def _left_out(where: str, field: str, value: object) -> DataError:
    ignored = "" if field == "content" else f"; or leave it out on purpose: ignore_fields: [{field}]"
    return DataError(
        f"{where}, field {field!r}: the chat template leaves it out.",
        got=f"{shorten(repr(value))}, which is not in the rendered text",
        expected="a template that writes it",
        fix="give the tokenizer a chat template that does; or take it out of the row, or move a text to where the "
        f"template writes it{ignored}",
    )
