"""The data of plain_pytorch.py and hf_trainer.py: requests as the input, tool calls as the labels."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import PreTrainedTokenizerBase

IGNORED = -100  # labels that the loss of transformers leaves out


def read_requests(path: Path, tokenizer: PreTrainedTokenizerBase, count: int) -> list[dict[str, list[int]]]:
    """The first rows of a JSON Lines file with `prompt` and `completion`, as token ids; only the answer has labels."""
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(count), strict=False)]
    return [_encode(row["prompt"], row["completion"], tokenizer) for row in rows]


def _encode(prompt: str, answer: str, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    question = [{"role": "system", "content": "Call a tool."}, {"role": "user", "content": prompt}]
    before = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template([*question, {"role": "assistant", "content": answer}], tokenize=False)
    before_ids = tokenizer(before, add_special_tokens=False)["input_ids"]
    answer_ids = tokenizer(whole.removeprefix(before), add_special_tokens=False)["input_ids"]
    return {"input_ids": before_ids + answer_ids, "labels": [IGNORED] * len(before_ids) + answer_ids}
