"""What the DataModules of classified texts share: texts or pairs of them, tokenised, each with its label."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

from torch.utils.data import DataLoader

from pera_lightning.data.data_module import Batch, Collate, TokenisedDataModule
from pera_lightning.data.option_errors import check_at_least_one
from pera_lightning.data.reading.split_sources import Split
from pera_lightning.errors import ConfigError
from pera_lightning.loading.tokenizer_trial import while_tokenising
from pera_lightning.run_log.messages import rank_zero_info


class LabelledTexts(list[dict[str, Any]]):
    """What the tokenizer makes of every row, with its label.

    Args:
        examples: Of all rows.
        texts: The texts that they were made of.
    """

    def __init__(self, examples: Iterable[dict[str, Any]], texts: Sequence[tuple[str, ...]]) -> None:
        super().__init__(examples)
        self.texts = texts

    @property
    def lengths(self) -> list[int]:
        """Tokens of every row."""
        return [len(example["input_ids"]) for example in self]

    @property
    def largest_id(self) -> int:
        """The largest token id."""
        return max(max(example["input_ids"], default=-1) for example in self)


class LabelledTextModule(TokenisedDataModule):
    """Texts or pairs of texts as batches for a sequence classifier.

    Args:
        max_length: Most tokens of a row.
        **options: Of `TokenisedDataModule`.

    Raises:
        ConfigError: An option has a value it cannot have.
    """

    def __init__(self, sources: Any, *, max_length: int, **options: Any) -> None:
        super().__init__(sources, **options)
        self.max_length = max_length
        check_at_least_one("max_length", max_length)

    @property
    @abstractmethod
    def num_labels(self) -> int | None:
        """Number of classes; 1 for scores, None before it is known."""

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The same batches as in a test."""
        return self.test_dataloader()

    def described(self, number: int) -> dict[str, Any]:
        """The row's texts, and its true class or score."""
        rows = self._splits["test"]
        return self._as_columns(number, rows.texts[number], rows[number]["labels"])

    def _as_columns(self, index: int, texts: tuple[str, ...], label: Any) -> dict[str, Any]:
        true = {} if label is None else {"true_score" if self.num_labels == 1 else "true_label": label}
        return {"index": index, **dict(zip(("text", "text_pair"), texts, strict=False)), **true}

    def _tokenise(self, split: Split, rows: Sequence[tuple[str, ...]], targets: Sequence[int | float]) -> LabelledTexts:
        """Tokenises rows of one or two texts.

        Args:
            split: What they are of, for messages.
            rows: Their texts.
            targets: Class numbers or scores.
        """
        length = self._length(len(rows[0]))
        texts = list(map(list, zip(*rows, strict=True)))
        with while_tokenising(f"The {split} split"):
            encoded = self._tokenizer(*texts, truncation=True, max_length=length)
        as_label = float if self.num_labels == 1 else int
        examples = LabelledTexts(
            (
                {**{name: values[index] for name, values in encoded.items()}, "labels": as_label(target)}
                for index, target in enumerate(targets)
            ),
            rows,
        )
        tokens = examples.lengths
        # What is cut fills it; of what fills it some may just fit.
        full = tokens.count(length)
        rank_zero_info(f"{split}: {len(rows):,} rows, {sum(tokens):,} tokens, {full:,} rows of {length} or cut to it")
        return examples

    def _length(self, texts: int) -> int:
        """Tokens to which rows are cut: no more than the model takes."""
        needed = self._tokenizer.num_special_tokens_to_add(pair=texts == 2) + texts
        if self.max_length < needed:
            # Of a length that leaves no token of a text, tokenizers cut nothing and say nothing.
            raise ConfigError(
                "max_length leaves nothing of the texts.",
                got=str(self.max_length),
                expected=f"{needed} or more: a token of each text beside those that the tokenizer adds",
                fix="raise max_length",
            )
        return min(self.max_length, self._tokenizer.model_max_length)

    def _collate(self, split: Split) -> Collate:
        from transformers import DataCollatorWithPadding

        return DataCollatorWithPadding(self._tokenizer)
