"""How much of the batches of instruction data is padding, and what rows end to end save of a model's work.

python -m benchmarks.padding TOKENIZER ROWS.json [ROWS.json ...]

Counted, not measured: multiply-adds of a block of Llama-3-8B, in its linear layers (by token) and in attention, which
tells rows in one row apart either by a mask over all of it (sdpa) or by their lengths (flash and flex attention).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AutoTokenizer

from pera_lightning import InstructionDataModule

LINEAR = 218_103_808
"""Weights of a block's linear layers."""
WIDTH = 4096
BATCH_SIZES = (4, 8, 16)


class Work(NamedTuple):
    """Tokens of an epoch's batches, and multiply-adds of a block over those of the padded batches."""

    tokens: int
    padded_tokens: int
    with_mask: float
    with_lengths: float

    @property
    def padding(self) -> float:
        """Share of the padded batches' tokens."""
        return 1 - self.tokens / self.padded_tokens


def count_work(batches: Iterable[dict[str, Tensor]]) -> Work:
    """Of padded batches."""
    tokens = padded_tokens = 0
    pairs_padded = pairs_masked = pairs_by_length = 0
    for batch in batches:
        lengths = batch["attention_mask"].sum(dim=1)
        rows, longest = batch["input_ids"].shape
        tokens, padded_tokens = tokens + int(lengths.sum()), padded_tokens + rows * longest
        pairs_padded += rows * longest**2
        pairs_masked += int(lengths.sum()) ** 2
        pairs_by_length += int((lengths**2).sum())
    padded = _work(padded_tokens, pairs_padded)
    return Work(tokens, padded_tokens, _work(tokens, pairs_masked) / padded, _work(tokens, pairs_by_length) / padded)


def _work(tokens: int, pairs: int) -> int:
    """Scores and their sums of values take a product of the model's width for each pair of tokens."""
    return LINEAR * tokens + 2 * WIDTH * pairs


def main() -> None:
    name, *files = sys.argv[1:]
    # A GGUF file brings its tokenizer.
    found = Path(name)
    options: dict[str, Any] = {"gguf_file": found.name} if found.suffix == ".gguf" else {}
    tokenizer = AutoTokenizer.from_pretrained(found.parent if options else name, **options)
    table = Table(title="Padding, and the work of rows end to end over that of padded ones")
    for title in ("rows", "batch", "order", "padding", "by mask (sdpa)", "by lengths (flash, flex)"):
        table.add_column(title, justify="right")
    for file in files:
        for batch_size in BATCH_SIZES:
            for grouped in (False, True):
                data = InstructionDataModule(
                    file,
                    tokenizer=tokenizer,
                    batch_size=batch_size,
                    max_length=512,
                    group_by_length=grouped,
                    on_bad_row="skip",
                )
                data.setup("fit")
                work = count_work(data.train_dataloader())
                order = "group_by_length" if grouped else "shuffled"
                figures = (f"{work.padding:.1%}", f"{work.with_mask:.2f}", f"{work.with_lengths:.2f}")
                table.add_row(Path(file).stem, str(batch_size), order, *figures)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
