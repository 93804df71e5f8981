"""The rows of a split, tokenised and counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich.progress import track

from pera_lightning.data.chat.prompts import ChatEncoder
from pera_lightning.data.examples import Example, ExampleDataset
from pera_lightning.data.reading.split_sources import Split
from pera_lightning.data.reading.splits import SplitRows
from pera_lightning.errors import DataError

_ROWS_WORTH_A_PROGRESS_BAR = 5000


@dataclass
class SplitSummary:
    """What a split holds after tokenisation.

    Args:
        rows: Rows used.
        tokens: Tokens of all examples.
        answer_tokens: Those of them that take part in the loss.
        prompts_cut: Examples that lost prompt tokens to `max_length`.
        answers_cut: Examples that lost answer tokens to `max_length`.
        rows_skipped: Bad rows left out.
    """

    rows: int = 0
    tokens: int = 0
    answer_tokens: int = 0
    prompts_cut: int = 0
    answers_cut: int = 0
    rows_skipped: int = 0

    def __str__(self) -> str:
        return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in vars(self).items())


class TokenisedSplit(ExampleDataset):
    """The examples of a split, with what became of its rows."""

    def __init__(self, examples: Iterable[Example], summary: SplitSummary) -> None:
        super().__init__(examples)
        self.summary = summary


def tokenise_split(split: Split, rows: SplitRows, encoder: ChatEncoder) -> TokenisedSplit:
    """Encodes the rows of a split, with a progress bar if there are many.

    Raises:
        DataError: If the chat template rejects a row that is not to be skipped, or no usable row is left.
    """
    summary = SplitSummary()
    examples = TokenisedSplit(_encode(split, rows, encoder, summary), summary)
    rows.bad_rows.report(split)
    if summary.rows == 0:
        raise DataError(
            f"The {split} split has no usable row.",
            got=rows.bad_rows.describe(),
            expected="at least one good row",
            fix="correct the rows",
        )
    summary.tokens, summary.answer_tokens = sum(examples.lengths), examples.answer_tokens
    summary.rows_skipped = rows.bad_rows.count
    return examples


def _encode(split: Split, rows: SplitRows, encoder: ChatEncoder, summary: SplitSummary) -> Iterator[Example]:
    few = len(rows.conversations) < _ROWS_WORTH_A_PROGRESS_BAR
    hidden = few or getattr(rank_zero_only, "rank", 0) != 0
    conversations = track(rows.conversations, f"Tokenising {split}", transient=True, disable=hidden)
    for examples in encoder.encode_all(conversations):
        if isinstance(examples, DataError):
            rows.bad_rows.handle(examples)
            continue
        summary.rows += 1
        summary.prompts_cut += sum(example.prompt_cut for example in examples)
        summary.answers_cut += sum(example.answer_cut for example in examples)
        yield from examples
