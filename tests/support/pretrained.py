"""Folders as `from_pretrained` reads them: tiny random models with a tokenizer of single characters."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from tests.support.models import tiny_llama

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<turn>' + message['role'] + ':' + message['content'] + '<end>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>assistant:' }}{% endif %}"
)
SPECIAL_TOKENS = ["<pad>", "<bos>", "<eos>", "<turn>", "<end>", "<unk>"]


def character_tokenizer(template: str | None = CHAT_TEMPLATE, **special_tokens: str | None) -> Any:
    """A tokenizer of at most 64 tokens: the special ones, then one for each character."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = [*SPECIAL_TOKENS, *string.ascii_lowercase, *string.digits, *' \n{}[]":,.?-']
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(characters)}, unk_token="<unk>"))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", **special_tokens}
    given = {name: token for name, token in names.items() if token is not None}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **given)


def save_pretrained(folder: Path, model: nn.Module | None = None, tokenizer: Any = None) -> str:
    """Write a model and a tokenizer (by default the tiny ones) as a folder; returns its path."""
    (model or tiny_llama()).save_pretrained(folder)
    (tokenizer or character_tokenizer()).save_pretrained(folder)
    return str(folder)


def padded_batch(tokenizer: Any, rows: list[tuple[str, str]]) -> dict[str, Any]:
    """Prompts and answers as a right-padded batch with labels on the answers and their `<end>`."""
    ids, labels = [], []
    for prompt, answer in rows:
        prompt_ids = tokenizer(prompt)["input_ids"]
        answer_ids = tokenizer(answer + "<end>")["input_ids"]
        ids.append(torch.tensor(prompt_ids + answer_ids))
        labels.append(torch.tensor([-100] * len(prompt_ids) + answer_ids))
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=tokenizer.pad_token_id),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
    }
