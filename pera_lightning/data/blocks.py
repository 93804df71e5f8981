"""Texts as one stream of tokens, cut into blocks of equal length."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from pera_lightning.data.chat.conversations import BadRows
from pera_lightning.data.examples import IGNORE_INDEX, Example
from pera_lightning.data.reading.parsed_row import FIX_ROW, ParsedRow, refuse_half_characters, shorten
from pera_lightning.data.reading.split_sources import RowSources, Split
from pera_lightning.errors import DataError
from pera_lightning.loading.tokenizer_trial import while_tokenising

_TEXTS_TOKENISED_TOGETHER = 256


def read_texts(sources: RowSources, split: Split, bad_rows: BadRows) -> Iterator[str]:
    """Yields the texts of a split lazily: those of whole files, and of rows their field `text`.

    Raises:
        DataError: If a file is damaged or holds no rows, or for a bad row that is not to be skipped.
    """
    for name, rows in sources.rows_of(split):
        row = None
        for row in rows:
            try:
                text = _text_of(row)
            except DataError as error:
                bad_rows.handle(error)
            else:
                yield text
        if row is None:
            raise DataError(
                f"{name} is empty.",
                got="no rows",
                expected="at least one row with a text",
                fix="check how the file was written, or leave it out",
            )


def tokenise_texts(texts: Iterable[str], tokenizer: Any) -> Iterator[list[int]]:
    """Yields the token ids of every text, with eos in front of all but the first.

    Other special tokens are those that the tokenizer adds by itself, such as bos; if that is eos, there is one only.

    Args:
        texts: The texts.
        tokenizer: A tokenizer of transformers that has an eos token.
    """
    texts, eos = iter(texts), [tokenizer.eos_token_id]
    last, read = eos, 0
    while together := list(itertools.islice(texts, _TEXTS_TOKENISED_TOGETHER)):
        # Not verbose: it would say that a text is longer than the model's context, which the blocks are for.
        with while_tokenising(f"Texts from number {read + 1:,} on"):
            found = tokenizer(together, verbose=False)["input_ids"]
        read += len(together)
        for ids in found:
            yield ids if last == eos else eos + ids
            last = ids[-1:]


def cut_blocks(texts: Iterable[list[int]], length: int, *, keep_rest: bool) -> Iterator[Example]:
    """Cuts the tokens of all texts, one behind the other, into blocks that do not overlap.

    Labelled is all of a block but its first token, which nothing stands before.

    Args:
        texts: Token ids of every text.
        length: Tokens of a block.
        keep_rest: Yield the shorter rest too, unless it is a single token, in which nothing can be predicted.
    """
    rest: list[int] = []
    for ids in texts:
        rest += ids
        end = len(rest) - len(rest) % length
        yield from (_block(rest[start : start + length]) for start in range(0, end, length))
        del rest[:end]
    if keep_rest and len(rest) > 1:
        yield _block(rest)


def _block(ids: list[int]) -> Example:
    return Example(ids, [IGNORE_INDEX, *ids[1:]])


def _text_of(row: ParsedRow) -> str:
    if isinstance(row, DataError):
        raise row
    if "text" not in row.fields:
        raise DataError(
            f"{row.where}: the row has no text.",
            got=f"the fields {', '.join(row.fields) or '(none)'}",
            expected="the field text",
            fix=FIX_ROW,
        )
    text = row.fields["text"]
    if not isinstance(text, str) or not text.strip():
        raise DataError(
            f"{row.where}: there is no text.",
            got=f"{type(text).__name__} {shorten(text)!r}",
            expected="a text that is not blank",
            fix=FIX_ROW,
        )
    refuse_half_characters(row.where, "text", text)
    return text
