"""The conversations of the train, val and test splits, and the train rows held out for validation."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from pera_lightning.data.chat.conversations import BadRows, Conversation, read_conversations
from pera_lightning.data.chat.row_formats import FORMATS, RowFormat
from pera_lightning.data.option_errors import check_at_least_one, check_choice, contradiction
from pera_lightning.data.reading.held_out import check_val_split, hold_out, share_of
from pera_lightning.data.reading.split_sources import RowSources, Split, no_data
from pera_lightning.errors import ConfigError


@dataclass(frozen=True)
class SplitRows:
    """The usable rows of a split, and the count of those that are not."""

    conversations: list[Conversation]
    bad_rows: BadRows


@dataclass(frozen=True, kw_only=True)
class SplitSources(RowSources):
    """Reads splits from files, or from a data set of the hub.

    Args:
        val_split: Share of the train rows held out for validation; 0 holds out none.
        row_format: Format of the rows.
        limits: Most rows of every split, taken from its beginning; `None` for all.
        seed: Decides which rows are held out, and which are trained on.
        val_rows: Number of train rows held out for validation, instead of val_split.
        fraction: Share of the other train rows to train on; a smaller share is part of a larger one.
        limits_each: Whether limits count the rows of each file, not of all files of a split together.
        ignore_fields: Fields of messages and rows to leave out on purpose.

    Raises:
        ConfigError: If an option has an impossible value, or two contradict each other.
    """

    val_split: float
    row_format: RowFormat
    limits: Mapping[Split, int | None]
    seed: int
    val_rows: int = 0
    fraction: float = 1.0
    limits_each: bool = False
    ignore_fields: Sequence[str] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("format", self.row_format, RowFormat)
        for split, limit in self.limits.items():
            check_at_least_one(f"max_{split}_rows", limit)
        check_val_split(self.val_split)
        if self.val_rows < 0:
            raise ConfigError("val_rows is too small.", got=self.val_rows, expected="at least 0", fix="raise val_rows")
        if not 0 < self.fraction <= 1:
            raise ConfigError(
                "fraction must be a share of the train rows.",
                got=self.fraction,
                expected="a number above 0 and up to 1",
                fix="fraction: 0.1 trains on one row in ten",
            )
        self._check_ignored()
        if self.val_split and self.files["val"]:
            raise contradiction("val_files and val_split", "one of the two")

    def _check_ignored(self) -> None:
        needed = {name for row_format in FORMATS.values() for name in row_format.never_ignored}
        if isinstance(self.ignore_fields, str) or not needed.isdisjoint(self.ignore_fields):
            raise ConfigError(
                "ignore_fields cannot have this value.",
                got=repr(self.ignore_fields),
                expected="a list of names of fields, without those that a conversation is made of",
                fix='ignore_fields=["reasoning_content"] leaves out what the models thought',
            )

    def has(self, split: Split) -> bool:
        """Says whether there is anything to read for the split."""
        return (split == "val" and self._holds_out) or super().has(split)

    def check(self, split: Split) -> None:
        """Checks that the split, or the train split it is held out of, has a source; see `RowSources`."""
        if split == "val" and not self.has(split):
            raise no_data(split, self.hub_splits, fix="set val_files, or val_split to hold out train rows")
        super().check("train" if split == "val" and self._holds_out else split)

    def read(self, splits: Collection[Split]) -> dict[Split, SplitRows]:
        """Reads and checks the rows of some splits; files of other splits need not exist.

        Raises:
            ConfigError: If a split has no source.
            DataError: If a file is missing, damaged or empty, or holds a bad row that is not to be skipped.
        """
        for split in splits:
            self.check(split)
        parted = self._read_parted() if self._parts_train and {"train", "val"} & set(splits) else {}
        return {split: parted.get(split) or self._read(split, self.limits[split]) for split in splits}

    @property
    def _holds_out(self) -> bool:
        return self.val_split > 0 or self.val_rows > 0

    @property
    def _parts_train(self) -> bool:
        return self._holds_out or self.fraction < 1

    def _read_parted(self) -> dict[Split, SplitRows]:
        """Reads the train rows and parts them; both parts keep the order of the file."""
        every = self._read("train", limit=None)
        rows = every.conversations
        val_rows = (self.val_rows or share_of(self.val_split, len(rows))) if self._holds_out else 0
        held_out, kept = hold_out(len(rows), val_rows, self.seed)
        val = [rows[index] for index in sorted(held_out)]
        train = [rows[index] for index in sorted(kept[: share_of(self.fraction, len(kept))])]
        parts: dict[Split, SplitRows] = {"train": SplitRows(train[: self.limits["train"]], every.bad_rows)}
        if self._holds_out:
            parts["val"] = SplitRows(val[: self.limits["val"]], BadRows(self.on_bad_row))
        return parts

    def _read(self, split: Split, limit: int | None) -> SplitRows:
        bad_rows = BadRows(self.on_bad_row)
        each, together = (limit, None) if self.limits_each else (None, limit)
        conversations = itertools.chain.from_iterable(
            itertools.islice(read_conversations(name, rows, self.row_format, bad_rows, self.ignore_fields), each)
            for name, rows in self.rows_of(split)
        )
        return SplitRows(list(itertools.islice(conversations, together)), bad_rows)
