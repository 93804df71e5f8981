"""One row of 400 turns that took a minute and a half, and other work that grew with the square of the data."""

from __future__ import annotations

import random

import pytest
import torch

from pera_lightning.data.chat.conversations import Conversation
from pera_lightning.data.chat.prompts import ChatEncoder
from pera_lightning.data.packing import pack_examples
from tests.data.conftest import SMOLLM2_TEMPLATE, build_tokenizer
from tests.support.chat_reference import encode_slowly


def chat(turns: int, rng: random.Random, system: bool) -> list[dict[str, str]]:
    words = ["capital", "France", " \n", "42", "{}", "tomorrow ", "\n\n", "ä", "😀", "<|im_end|>", "half past six"]
    texts = ["".join(rng.choices(words, k=rng.randint(1, 9))) + "." for _ in range(turns)]
    messages = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
    return [{"role": "system", "content": texts[0]}, *messages] if system else messages


PLAIN = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}" + (
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@pytest.mark.parametrize("seed", range(30))
def test_long_chats_become_what_they_did_the_slow_way(seed: int) -> None:
    rng = random.Random(seed)
    template = rng.choice([SMOLLM2_TEMPLATE, SMOLLM2_TEMPLATE, PLAIN])
    tokenizer = build_tokenizer(template, bos_token="<|im_start|>", eos_token="<|im_end|>")
    messages = chat(2 * rng.randint(1, 12), rng, rng.random() < 0.5)
    encoder = ChatEncoder(tokenizer, max_length=rng.randint(60, 400))
    # Where the template has no end of turn, the eos token is put there.
    stop = [tokenizer.eos_token_id] if template == PLAIN else []
    room = encoder.max_length - len(stop)
    ids, labels = encode_slowly(tokenizer, messages, room, encoder._tail, encoder._ending)
    [found] = encoder.encode(Conversation("file, line 1", messages))
    if len(ids) <= room:
        assert (found.input_ids, found.labels) == (ids + stop, labels + stop)
    else:
        # The last exchange, cut.
        assert len(found.input_ids) == encoder.max_length
        assert found.prompt_cut


def test_a_chat_of_400_turns_is_rendered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = build_tokenizer(SMOLLM2_TEMPLATE, bos_token="<|im_start|>", eos_token="<|im_end|>")
    encoder = ChatEncoder(tokenizer, max_length=1024)
    messages = [{"role": ("user", "assistant")[n % 2], "content": f"turn {n}, what is it?"} for n in range(400)]
    rendered, tokenised = [], []
    render, ids = encoder._template.render, encoder._ids
    monkeypatch.setattr(
        encoder._template, "render", lambda turns, *args, **more: rendered.append(turns) or render(turns, *args, **more)
    )
    monkeypatch.setattr(encoder, "_ids", lambda text: tokenised.append(len(text)) or ids(text))
    [example] = encoder.encode(Conversation("file, line 1", messages))
    assert 1024 - 60 < len(example.input_ids) <= 1024
    assert example.answer_cut
    # Two for each answer, and a few for the exchanges that are left.
    assert len(rendered) < 2 * 200 + 400
    assert sum(tokenised) < 12 * sum(len(message["content"]) + 30 for message in messages)


def test_many_examples_are_packed_as_before() -> None:
    def slowly(lengths: list[int], pack_length: int, seed: int) -> list[list[int]]:
        order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed)).tolist()
        order.sort(key=lambda index: lengths[index], reverse=True)
        packs: list[list[int]] = []
        room: list[int] = []
        for index in order:
            fitting = [(left, pack) for pack, left in enumerate(room) if left >= lengths[index]]
            if not fitting:
                packs.append([])
                room.append(pack_length)
            pack = min(fitting)[1] if fitting else len(packs) - 1
            packs[pack].append(index)
            room[pack] -= lengths[index]
        return packs

    rng = random.Random(0)
    for _ in range(20):
        lengths = [rng.randint(1, 40) for _ in range(rng.randint(1, 200))]
        assert pack_examples(lengths, 40, 3) == slowly(lengths, 40, 3)
    # So many packs, of which each was once moved for every other one.
    assert len(pack_examples([64] * 100_000, 64, 0)) == 100_000
