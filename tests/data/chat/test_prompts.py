from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pera_lightning.data.chat.conversations import Conversation
from pera_lightning.data.chat.prompts import ChatEncoder
from pera_lightning.data.examples import Example
from pera_lightning.errors import ConfigError, DataError
from tests.data.conftest import SMOLLM2_TEMPLATE

DEFAULT_SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
# Renders earlier answers without the thinking that it puts before the last one, as Qwen3's template does.
THINKING_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if loop.last and m['role'] == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Trims contents, wants alternating turns, knows no system turn and ends turns with a plain line.
STRICT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('must alternate') }}{% endif %}"
    "{{ m['role'] + ': ' + m['content'] | trim + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def turns(*contents: str, system: str | None = None) -> Conversation:
    roles = ["user", "assistant"] * (len(contents) // 2 + 1)
    messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return Conversation("file, line 1", messages)


def spans(tokenizer: Any, example: Example) -> list[tuple[bool, str]]:
    """The example decoded in runs: (is learnt, text)."""
    assert all(label in (-100, token) for token, label in zip(example.input_ids, example.labels, strict=True))
    runs: list[tuple[bool, list[int]]] = []
    for token, label in zip(example.input_ids, example.labels, strict=True):
        if not runs or runs[-1][0] != (label != -100):
            runs.append((label != -100, []))
        runs[-1][1].append(token)
    return [(learnt, tokenizer.decode(ids)) for learnt, ids in runs]


def encode(tokenizer: Any, conversation: Conversation, max_length: int = 1000, **options: Any) -> list[Any]:
    examples = ChatEncoder(tokenizer, max_length=max_length, **options).encode(conversation)
    return [spans(tokenizer, example) for example in examples]


def test_the_answer_and_its_end_of_turn_are_learnt(chat_tokenizer: Any) -> None:
    assert encode(chat_tokenizer, turns("capital of France?", ' {"a": 1}\n')) == [
        [
            (False, f"{DEFAULT_SYSTEM}<|im_start|>user\ncapital of France?<|im_end|>\n<|im_start|>assistant\n"),
            (True, ' {"a": 1}\n<|im_end|>'),
        ]
    ]


def test_every_answer_of_a_chat_is_learnt(chat_tokenizer: Any) -> None:
    assert encode(chat_tokenizer, turns("q1", "a1", "q2", "a2", system="s")) == [
        [
            (False, "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\n"),
            (True, "a1<|im_end|>"),
            (False, "\n<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n"),
            (True, "a2<|im_end|>"),
        ]
    ]


def test_ids_are_those_of_the_whole_text(chat_tokenizer: Any) -> None:
    chat = turns("What is the capital?", "Paris.", "wake me", '{"tool": "set_alarm"}')
    [example] = ChatEncoder(chat_tokenizer, max_length=1000).encode(chat)
    whole = chat_tokenizer.apply_chat_template(chat.messages, tokenize=False).removesuffix("\n")
    assert example.input_ids == chat_tokenizer(whole, add_special_tokens=False)["input_ids"]


def test_the_masked_prompt_is_what_generation_starts_from(chat_tokenizer: Any) -> None:
    chat = turns("q", "a")
    encoder = ChatEncoder(chat_tokenizer, max_length=1000)
    [example] = encoder.encode(chat)
    prompt = encoder.encode_prompt(chat.messages[:-1])
    assert prompt == example.input_ids[: len(prompt)]
    assert example.labels[: len(prompt) + 1] == [-100] * len(prompt) + [example.input_ids[len(prompt)]]


def test_a_system_prompt_takes_the_place_of_the_default_but_not_of_the_rows_own(chat_tokenizer: Any) -> None:
    [[(_, prompt), _]] = encode(chat_tokenizer, turns("q", "a"), system_prompt="mine")
    assert prompt == "<|im_start|>system\nmine<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    [[(_, prompt), _]] = encode(chat_tokenizer, turns("q", "a", system="own"), system_prompt="mine")
    assert "own" in prompt
    assert "mine" not in prompt


def test_without_a_chat_template_the_plain_one_serves(plain_tokenizer: Any, chat_tokenizer: Any) -> None:
    expected = [
        (False, "### System:\ns\n\n### User:\nq\n\n### Assistant:\n"),
        (True, "a{eos}"),
        (False, "\n\n### User:\nq2\n\n### Assistant:\n"),
        (True, "a2{eos}"),
    ]
    chat = turns("q", "a", "q2", "a2", system="s")
    for tokenizer, options in ((plain_tokenizer, {}), (chat_tokenizer, {"use_chat_template": False})):
        eos = tokenizer.eos_token
        assert encode(tokenizer, chat, **options) == [[(on, text.format(eos=eos)) for on, text in expected]]


def test_the_plain_template_begins_with_bos_where_the_tokenizer_adds_it(make_tokenizer: Callable[..., Any]) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer(bos_token="<|im_start|>", eos_token="<|endoftext|>")
    assert encode(tokenizer, turns("q", "a"))[0][0][1].startswith("### User")
    bos = ("<|im_start|>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=[bos])
    assert encode(tokenizer, turns("q", "a"))[0][0][1].startswith("<|im_start|>### User")


def test_no_token_spans_prompt_and_answer(plain_tokenizer: Any) -> None:
    prompt, answer = "### User:\nq\n\n### Assistant:\n", "\n\nanswer<|endoftext|>"
    ids = plain_tokenizer(prompt)["input_ids"]
    assert plain_tokenizer(prompt + answer)["input_ids"][: len(ids)] != ids
    [example] = ChatEncoder(plain_tokenizer, max_length=1000).encode(turns("q", "\n\nanswer"))
    assert example.input_ids[: len(ids)] == ids
    assert spans(plain_tokenizer, example) == [(False, prompt), (True, answer)]


def test_a_tokenizer_that_prefixes_words_gives_natural_ids() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = sorted(set("▁#abcdefghijklmnopqrstuvwxyzASU:\n"))
    vocabulary = {"<s>": 0, "</s>": 1, **{char: index for index, char in enumerate(characters, start=2)}}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    [example] = ChatEncoder(tokenizer, max_length=1000).encode(turns("q", "answer"))
    answer = [label for label in example.labels if label != -100]
    # Tokenised by itself the answer would begin with a space.
    assert tokenizer.convert_ids_to_tokens(answer) == [*"answer", "</s>"]


def test_a_template_that_rewrites_earlier_turns_gives_one_example_for_each(
    make_tokenizer: Callable[..., Any],
) -> None:
    tokenizer = make_tokenizer(THINKING_TEMPLATE, eos_token="<|im_end|>")
    first = "<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\n"
    second = f"{first}a1<|im_end|>\n<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n"
    assert encode(tokenizer, turns("q1", "a1", "q2", "a2")) == [
        [(False, first), (True, "<think>\n\n</think>\n\na1<|im_end|>")],
        [(False, second), (True, "<think>\n\n</think>\n\na2<|im_end|>")],
    ]


def test_eos_ends_an_answer_where_the_template_has_no_end_of_turn(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer(STRICT_TEMPLATE, bos_token="<|im_start|>", eos_token="<|endoftext|>")
    assert encode(tokenizer, turns("q", " a ", "q2", "a2\n")) == [
        [
            (False, "<|im_start|>user: q\nassistant: "),
            (True, "a"),
            (False, "\nuser: q2\nassistant: "),
            (True, "a2<|endoftext|>"),
        ]
    ]


def test_an_answer_ends_with_the_first_special_token_after_it(make_tokenizer: Callable[..., Any]) -> None:
    # As Phi-3's template: a conversation that is not to be continued ends with eos as well.
    template = SMOLLM2_TEMPLATE.replace("{% endif %}", "{% else %}{{ eos_token }}{% endif %}")
    template = template.replace("{% else %}{{ eos_token }}{% endif %}", "{% endif %}", 1)
    tokenizer = make_tokenizer(template, eos_token="<|endoftext|>")
    [question, answer, *others] = encode(tokenizer, turns("q", "a", "q2", "a2"))[0]
    assert answer == (True, "a<|im_end|>")
    assert others == [
        (False, "\n<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n"),
        (True, "a2<|im_end|>"),
    ]
    assert "<|endoftext|>" not in question[1]


def test_a_row_that_the_template_rejects_is_named(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer(STRICT_TEMPLATE, bos_token="<|im_start|>", eos_token="<|endoftext|>")
    with pytest.raises(DataError, match=r"file, line 1: the chat template[\s\S]*System role not supported"):
        encode(tokenizer, turns("q", "a", system="s"))


def test_templates_that_cannot_serve_are_refused_at_once(make_tokenizer: Callable[..., Any]) -> None:
    strict = make_tokenizer(STRICT_TEMPLATE, bos_token="<|im_start|>", eos_token="<|endoftext|>")
    with pytest.raises(ConfigError, match=r"System role not supported[\s\S]*leave system_prompt out"):
        ChatEncoder(strict, max_length=100, system_prompt="s")
    with pytest.raises(ConfigError, match="could not learn to end"):
        ChatEncoder(make_tokenizer(STRICT_TEMPLATE, bos_token="<|im_start|>"), max_length=100)
    other_prompt = SMOLLM2_TEMPLATE.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n")
    with pytest.raises(ConfigError, match="generation prompt that is the beginning"):
        ChatEncoder(make_tokenizer(other_prompt, eos_token="<|im_end|>"), max_length=100)


def test_max_length_must_leave_room_for_an_answer(chat_tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match="leaves no room"):
        ChatEncoder(chat_tokenizer, max_length=20)


def truncated(tokenizer: Any, conversation: Conversation, spare: int, **options: Any) -> Example:
    """The example cut to `spare` tokens less than it has."""
    [whole] = ChatEncoder(tokenizer, max_length=10_000, **options).encode(conversation)
    length = len(whole.input_ids) - spare
    [example] = ChatEncoder(tokenizer, max_length=length, **options).encode(conversation)
    assert len(example.input_ids) == length
    return example


def test_a_long_prompt_loses_the_beginning_of_the_question(chat_tokenizer: Any) -> None:
    example = truncated(chat_tokenizer, turns("one two three four five six seven", "Paris."), spare=20)
    (_, prompt), answer = spans(chat_tokenizer, example)
    assert answer == (True, "Paris.<|im_end|>")
    assert prompt.startswith(f"{DEFAULT_SYSTEM}<|im_start|>user\n")
    assert prompt.endswith("seven<|im_end|>\n<|im_start|>assistant\n")
    assert "one two" not in prompt
    assert (example.prompt_cut, example.answer_cut) == (True, False)


def test_truncation_keeps_the_beginning_up_to_a_token_that_joins_it_with_the_question(chat_tokenizer: Any) -> None:
    # The line feed of the template and those of the question make other tokens than the template alone.
    example = truncated(chat_tokenizer, turns("\n\none two three four five", "Paris."), spare=8)
    (_, prompt), _ = spans(chat_tokenizer, example)
    assert prompt.startswith(f"{DEFAULT_SYSTEM}<|im_start|>user")


def test_a_long_answer_takes_the_room_of_the_system_message_before_it_is_cut(chat_tokenizer: Any) -> None:
    chat = turns("q", "What is the capital of France? Paris. " * 6)
    example = truncated(chat_tokenizer, chat, spare=20)
    (_, prompt), (_, answer) = spans(chat_tokenizer, example)
    assert answer == chat.messages[-1]["content"] + "<|im_end|>"
    assert prompt.endswith("user\nq<|im_end|>\n<|im_start|>assistant\n")
    assert not example.answer_cut


def test_an_answer_that_does_not_fit_is_cut_and_said_to_be(chat_tokenizer: Any) -> None:
    chat = turns("q", "What is the capital of France? Paris. " * 60)
    encoder = ChatEncoder(chat_tokenizer, max_length=80)
    [example] = encoder.encode(chat)
    (_, prompt), (_, answer) = spans(chat_tokenizer, example)
    assert prompt == "<|im_start|>assistant\n"
    assert chat.messages[-1]["content"].startswith(answer)
    assert len(example.input_ids) == 80
    assert (example.prompt_cut, example.answer_cut) == (True, True)


def test_a_long_chat_loses_its_oldest_exchanges(chat_tokenizer: Any) -> None:
    encoder = ChatEncoder(chat_tokenizer, max_length=100)
    contents = [f"{kind}{number}" for number in range(9) for kind in ("question ", "answer ")]
    [example] = encoder.encode(turns(*contents, system="be brief"))
    decoded = spans(chat_tokenizer, example)
    assert decoded[0][1].startswith("<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nquestion ")
    assert decoded[-1] == (True, "answer 8<|im_end|>")
    assert 3 <= len(decoded) < 18
    assert all(text.startswith("answer ") and text.endswith("<|im_end|>") for learnt, text in decoded if learnt)
    assert len(example.input_ids) <= 100
    assert (example.prompt_cut, example.answer_cut) == (False, True)


@pytest.mark.real_model
def test_the_real_smollm2_tokenizer(smollm2_folder: Path) -> None:
    from transformers import AutoTokenizer

    [file] = smollm2_folder.glob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder, gguf_file=file.name)
    assert tokenizer.chat_template == SMOLLM2_TEMPLATE
    [[(_, prompt), answer]] = encode(tokenizer, turns("What is the capital of France?", "Paris."))
    question = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
    assert prompt == f"{DEFAULT_SYSTEM}{question}<|im_start|>assistant\n"
    assert answer == (True, "Paris.<|im_end|>")
