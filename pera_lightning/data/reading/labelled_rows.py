"""Texts or pairs of texts with the class or score of each, out of files or a data set of the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pera_lightning.data.chat.conversations import BadRows
from pera_lightning.data.option_errors import check_at_least_one, contradiction
from pera_lightning.data.reading.class_labels import Label, Labels, found_labels, label_of
from pera_lightning.data.reading.held_out import check_val_split, drawn, hold_out, share_of
from pera_lightning.data.reading.parsed_row import FIX_ROW, Row, refuse_half_characters, shorten
from pera_lightning.data.reading.split_sources import RowSources, Split
from pera_lightning.data.reading.text_fields import ChosenFields
from pera_lightning.errors import ConfigError, DataError
from pera_lightning.run_log.messages import rank_zero_info

_ORDER: tuple[Split, ...] = ("train", "val", "test", "predict")


@dataclass(frozen=True, slots=True)
class LabelledRow:
    """A text, or a pair of texts.

    Args:
        index: Its number among all rows of its split, from 0, the bad ones counted.
        place: Where its label stands, for messages.
        texts: One or two.
        label: As the file has it, where it has one.
        target: What is learned of it: the number of its class, or its score; 0 where it only is to be predicted.
    """

    index: int
    place: str
    texts: tuple[str, ...]
    label: Label | None
    target: int | float = 0


@dataclass(frozen=True, kw_only=True)
class LabelledSources(RowSources):
    """Reads splits of labelled texts; see `ClassificationDataModule` for the options.

    Raises:
        ConfigError: An option has an impossible value, or two contradict each other.
    """

    fields: ChosenFields
    regression: bool | None
    val_split: float
    limits: Mapping[Split, int | None]
    seed: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_val_split(self.val_split)
        for split, limit in self.limits.items():
            check_at_least_one(f"max_{split}_rows", limit)
        if self.val_split and self.files["val"]:
            raise contradiction("val_files and val_split", "one of the two")

    def has(self, split: Split) -> bool:
        """Says whether there is anything to read for the split."""
        return (split == "val" and self.val_split > 0) or super().has(split)

    def needed_in(self, stage: str) -> list[Split]:
        """The splits that a stage of the Trainer uses: to predict its own, or without one the test split."""
        return ["predict"] if stage == "predict" and self.has("predict") else super().needed_in(stage)

    def read(self, splits: Sequence[Split], known: Labels | None) -> tuple[Labels, dict[Split, list[LabelledRow]]]:
        """Reads some splits; the training rows as well where they alone tell which classes there are.

        Args:
            splits: What to read.
            known: What the labels stand for, if that is known.

        Returns:
            What the labels stand for, and the rows of each split.

        Raises:
            ConfigError: A split has no source, or no field as it is named; or nothing tells the classes.
            DataError: A file is missing or damaged, or holds a bad row that is not to be skipped.
        """
        if known is None and not super().has("train"):
            raise _unknown_labels()
        parted = bool(self.val_split) and "val" in splits
        reading = _Reading(self)
        found = {
            split: reading.rows_of(split)
            for split in _ORDER
            if (split in splits and not (parted and split == "val")) or (split == "train" and (known is None or parted))
        }
        labels = known or _labels_in(found["train"], self.regression)
        rows = {split: reading.with_targets(split, part, labels) for split, part in found.items()}
        if self.val_split and "train" in rows:
            rows |= self._parted(rows["train"])
        return labels, {split: self._limited(split, rows[split]) for split in splits}

    def _parted(self, rows: list[LabelledRow]) -> dict[Split, list[LabelledRow]]:
        held_out, kept = hold_out(len(rows), share_of(self.val_split, len(rows)), self.seed)
        return {"train": [rows[at] for at in sorted(kept)], "val": [rows[at] for at in sorted(held_out)]}

    def _limited(self, split: Split, rows: list[LabelledRow]) -> list[LabelledRow]:
        return [rows[at] for at in drawn(len(rows), self.limits.get(split), self.seed)]


class _Reading:
    """One look at the files: every source has the texts in the fields of the first one."""

    def __init__(self, sources: LabelledSources) -> None:
        self._sources = sources
        self._texts: tuple[str, ...] = ()
        self._bad_rows: dict[Split, BadRows] = {}

    def rows_of(self, split: Split) -> list[LabelledRow]:
        """The rows of a split, with their labels as they are there."""
        self._sources.check(split)
        bad_rows = self._bad_rows[split] = BadRows(self._sources.on_bad_row)
        rows: list[LabelledRow] = []
        index = -1
        for _, source in self._sources.rows_of(split):
            label, first = None, True
            for row in source:
                index += 1
                if isinstance(row, DataError):
                    bad_rows.handle(row)
                    continue
                if first:
                    label, first = self._find_fields(split, row), False
                try:
                    rows.append(_labelled(index, row, self._texts, label, self._classes(split, label)))
                except DataError as error:
                    bad_rows.handle(error)
        return rows

    def with_targets(self, split: Split, rows: list[LabelledRow], labels: Labels) -> list[LabelledRow]:
        """The same rows with what is to be learned of them, and numbers that a table holds as text as numbers."""
        bad_rows, usable = self._bad_rows[split], []
        for row in rows:
            try:
                target = 0 if split == "predict" else labels.target(row.label, row.place)
            except DataError as error:
                bad_rows.handle(error)
            else:
                label = None if row.label is None else labels.value(row.label)
                usable.append(replace(row, label=label, target=target))
        bad_rows.report(split)
        if not usable:
            raise DataError(
                f"The {split} split has no usable row.",
                got=bad_rows.describe(),
                expected="at least one good row",
                fix="correct the rows, or how the file was written",
            )
        return usable

    def _find_fields(self, split: Split, row: Row) -> str | None:
        """Finds the fields by the first row of a source; returns that of the label."""
        chosen = self._sources.fields
        self._texts = self._texts or chosen.texts_of(row)
        label = chosen.label_of(row, needed=split != "predict")
        if None in (chosen.text, chosen.label):
            rank_zero_info(f"{row.where}: texts are read from {' and '.join(self._texts)}, labels from {label}")
        return label

    def _classes(self, split: Split, label: str | None) -> Sequence[str]:
        return () if label is None else self._sources.hub_classes(split, label)


def _labelled(index: int, row: Row, texts: Sequence[str], name: str | None, classes: Sequence[str]) -> LabelledRow:
    found = tuple(_text(row, field) for field in texts)
    if name is None:
        return LabelledRow(index, row.where, found, None)
    place = f"{row.where}, field {name!r}"
    label = label_of(row.fields.get(name), place)
    if classes and isinstance(label, int):
        # The hub writes -1 where there is no label.
        label = classes[label] if 0 <= label < len(classes) else None
    refuse_half_characters(row.where, name, label)
    return LabelledRow(index, place, found, label)


def _text(row: Row, name: str) -> str:
    value = row.fields.get(name)
    if not isinstance(value, str) or not value.strip():
        raise DataError(
            f"{row.where}, field {name!r}: the text cannot be used.",
            got="no such field" if name not in row.fields else f"{type(value).__name__} {shorten(repr(value))}",
            expected="a text that is not empty",
            fix=FIX_ROW,
        )
    refuse_half_characters(row.where, name, value)
    return value


def _labels_in(rows: Sequence[LabelledRow], regression: bool | None) -> Labels:
    labelled = [(row.label, row.place) for row in rows if row.label is not None]
    return found_labels([label for label, _ in labelled], [place for _, place in labelled], regression)


def _unknown_labels() -> ConfigError:
    return ConfigError(
        "Nothing says which classes there are.",
        got="neither labels nor training rows",
        expected="the names of the classes, in the order in which the model learned them",
        fix="set labels (adapter_config.json beside an adapter lists them), regression: true, or train_files",
    )
