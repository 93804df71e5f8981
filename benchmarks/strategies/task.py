"""What every strategy trains: a base model in a folder, and rows of equal answers.

The loss of a batch is the mean over its answer tokens, and the loss of several processes the mean of their means. Both
are the same number only where every process has as many answer tokens; so all rows have.
"""

from __future__ import annotations

import json
import string
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

GLOBAL_BATCH = 8
ROWS = 4 * GLOBAL_BATCH
SPECIAL = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}


def write_tiny_task(folder: Path) -> tuple[Path, Path]:
    """A random Llama of two blocks that reads single characters, and rows that ask for the doubled digits.

    Returns:
        The model's folder and the file of the rows.
    """
    model, data = folder / "model", folder / "rows.jsonl"
    tokenizer = _character_tokenizer()
    disable_progress_bar()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(model)
    tokenizer.save_pretrained(model)
    numbers = [f"{number:02d}" for number in range(10, 10 + ROWS)]
    _write(data, [{"prompt": f"double {number}", "completion": number[0] * 2 + number[1] * 2} for number in numbers])
    return model, data


def write_quickstart_rows(model: Path, source: Path, data: Path) -> None:
    """Rows of the quickstart, the first of those whose answers have the most frequent number of tokens."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    by_length: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for line in source.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        by_length[len(tokenizer(row["completion"])["input_ids"])].append(row)
    _write(data, max(by_length.values(), key=len)[:ROWS])


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _character_tokenizer() -> Any:
    characters = [*SPECIAL.values(), *string.ascii_letters, *string.digits, *" \n#:"]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(characters)}, unk_token="<unk>"))
    tokenizer.add_special_tokens(list(SPECIAL.values()))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)
