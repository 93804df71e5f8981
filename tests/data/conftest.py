"""Small tokenizers built on the spot, with and without a chat template."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

# As SmolLM2-135M-Instruct has it: a default system message, and no {% generation %}.
SMOLLM2_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = [
    "What is the capital of France? Paris. wake me at half past six tomorrow",
    '{"tool": "set_alarm", "time": "06:30"} system user assistant ### User: ### Assistant:',
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    *["a\n\n"] * 20,
]


def build_tokenizer(template: str | None = None, **special_tokens: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, chat_template=template, **special_tokens)


@pytest.fixture(scope="session")
def chat_tokenizer() -> Any:
    """Has SmolLM2's template and no pad token."""
    return build_tokenizer(SMOLLM2_TEMPLATE, bos_token="<|im_start|>", eos_token="<|im_end|>")


@pytest.fixture(scope="session")
def plain_tokenizer() -> Any:
    """Has neither a chat template nor a pad token."""
    return build_tokenizer(eos_token="<|endoftext|>")


@pytest.fixture
def make_tokenizer() -> Callable[..., Any]:
    return build_tokenizer
