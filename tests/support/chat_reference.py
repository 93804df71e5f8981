"""Conversations as tokens the slow way: for every exchange that is left out all others are rendered again."""

from __future__ import annotations

from typing import Any

IGNORED = -100


def encode_slowly(tokenizer: Any, messages: list[dict[str, Any]], max_length: int, tail: str, ending: str) -> Any:
    """Ids and labels of a conversation without as many exchanges at its beginning as do not fit; at least one is left.

    Args:
        tokenizer: With a chat template that continues earlier turns.
        messages: The conversation.
        max_length: Most tokens, unless only one exchange is left.
        tail: What the template writes after an answer.
        ending: How much of it is learnt.
    """
    while True:
        ids, labels, text = [], [], ""
        answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        for answer in answers:
            prompt = _rendered(tokenizer, messages[:answer], True)
            whole = _rendered(tokenizer, messages[: answer + 1], False)
            reply = whole[len(prompt) :].removesuffix(tail) + ending
            question = _after(tokenizer, text, ids, prompt[len(text) :])
            ids = ids + question
            learnt = _after(tokenizer, prompt, ids, reply)
            ids, text = ids + learnt, prompt + reply
            labels += [IGNORED] * len(question) + learnt
        if len(ids) <= max_length or len(answers) == 1:
            return ids, labels
        start = 1 if messages[0]["role"] == "system" else 0
        messages = messages[:start] + messages[answers[0] + 1 :]


def _rendered(tokenizer: Any, messages: list[dict[str, Any]], generation_prompt: bool) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt)


def _after(tokenizer: Any, text: str, ids: list[int], addition: str) -> list[int]:
    whole = tokenizer(text + addition, add_special_tokens=False)["input_ids"]
    if whole[: len(ids)] == ids:
        return whole[len(ids) :]
    return tokenizer(addition, add_special_tokens=False)["input_ids"]
