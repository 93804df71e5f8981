"""What the labels of rows stand for: classes in the order of their numbers, or scores."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pera_lightning.data.reading.parsed_row import FIX_ROW, shorten
from pera_lightning.did_you_mean import did_you_mean, near
from pera_lightning.errors import ConfigError, DataError

ClassName = int | str
Label = int | float | str
"""As a file has it: a class by its name or number, or a score."""

_WHOLE = re.compile(r"0|-?[1-9]\d{0,17}")
_SHOWN = 12
_MANY_ROWS = 20
"""Of which no two share a label: an id or a text, not a class."""


def label_of(value: Any, place: str) -> Label | None:
    """The label in a field of a row; None where it is empty, which pandas writes as NaN.

    Args:
        value: What the field holds.
        place: Where it stands, for messages.

    Raises:
        DataError: It is a list or an object.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value.strip() or None
    if value is None or isinstance(value, int | float):
        return None if isinstance(value, float) and math.isnan(value) else value
    several = "one label: rows that have several at once are not supported"
    raise _bad_label(place, value, several if isinstance(value, list) else "a class or a score")


@dataclass(frozen=True)
class Labels:
    """The classes that are learned, or scores.

    Args:
        names: Names or numbers of the classes, in order; none where scores are learned.
    """

    names: tuple[ClassName, ...] = ()

    @property
    def count(self) -> int:
        """Number of classes; 1 of scores."""
        return len(self.names) or 1

    @cached_property
    def _numbers(self) -> Mapping[str, int]:
        # Tables hold the numbers of classes as text.
        return {str(name): number for number, name in enumerate(self.names)}

    def target(self, label: Label | None, place: str) -> int | float:
        """What a classifier learns of a row: the number of its class, or its score.

        Args:
            label: Of the row.
            place: Where it stands, for messages.

        Raises:
            DataError: It has none, an unknown class, or no finite score.
        """
        if label is None:
            raise _bad_label(place, None, "a class" if self.names else "a score")
        if not self.names:
            score = _as_number(label)
            if score is None or not math.isfinite(score):
                raise _bad_label(place, label, "a finite number, since scores are learned")
            return score
        found = self._numbers.get(str(_class_of(label)))
        if found is None:
            meant = did_you_mean(near(str(label), self._numbers), "")
            raise _bad_label(place, label, f"one of the classes {listed(self.names)}", meant)
        return found

    def value(self, label: Label) -> Label:
        """A label as the classes or scores have it, though a table holds it as text; any other as it is."""
        number = self._numbers.get(str(_class_of(label)))
        if number is not None:
            return self.names[number]
        score = None if self.names else _as_number(label)
        return label if score is None else score

    def __str__(self) -> str:
        return f"{len(self.names)} classes ({listed(self.names)})" if self.names else "scores"


def listed(names: Sequence[ClassName]) -> str:
    """Names of classes in their order, for messages; of very many only the first."""
    return ", ".join(shorten(name, 40) for name in names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def checked_names(names: Sequence[ClassName]) -> tuple[ClassName, ...]:
    """Names of classes that somebody gives.

    Raises:
        ConfigError: They are fewer than two, empty, or not different.
    """
    if isinstance(names, str) or len(names) < 2 or len({str(name).strip() for name in names} - {""}) < len(names):
        raise ConfigError(
            "labels cannot have this value.",
            got=shorten(repr(names)),
            expected="a list of the names of two or more classes, all different, in the order of their numbers",
            fix="labels=[bad,good]; for scores leave it out and set regression: true",
        )
    # YAML makes true and false of what JSON rows have as such.
    texts = (str(name).lower() if isinstance(name, bool) else name for name in names)
    return tuple(name if isinstance(name, int) else name.strip() for name in texts)


def found_labels(labels: Sequence[Label], places: Sequence[str], regression: bool | None) -> Labels:
    """What the labels of the training rows stand for.

    Args:
        labels: Of all rows that have one.
        places: Where each stands.
        regression: Whether they are scores; None: if every one is a number, and one or more of them no whole number.

    Raises:
        DataError: They are too few classes or hardly classes at all, or some look like scores and others do not.
    """
    scores = [_as_number(label) is not None for label in labels]
    fractions = any(scored and not _is_whole(label) for label, scored in zip(labels, scores, strict=True))
    if regression or (regression is None and fractions and all(scores)):
        return Labels()
    if regression is None and fractions:
        odd = scores.index(False)
        raise DataError(
            f"{places[odd]}: this label is no number, while other rows have scores.",
            got=shorten(repr(labels[odd])),
            expected="scores, or classes, in all rows",
            fix="correct the row; for classes with such names set regression: false",
        )
    classes = {str(name): name for name in map(_class_of, labels)}
    if len(classes) < 2:
        raise DataError(
            "There are too few classes to tell apart.",
            got=f"{len(labels)} training rows, {'all labelled ' + next(iter(classes)) if classes else 'none labelled'}",
            expected="rows of two or more classes, or scores",
            fix="give rows of the other classes; for scores that are whole numbers set regression: true",
        )
    if len(classes) == len(labels) >= _MANY_ROWS:
        raise DataError(
            "Every training row has a label of its own, so that none can be learned.",
            got=f"{len(labels)} rows with as many labels: {listed(list(classes.values()))}",
            expected="classes that many rows share, or scores",
            fix="name the right column with label_field; for scores set regression: true",
        )
    return Labels(_sorted(list(classes.values())))


def _sorted(names: list[ClassName]) -> tuple[ClassName, ...]:
    numbers = [name for name in names if isinstance(name, int)]
    return tuple(sorted(numbers) if len(numbers) == len(names) else sorted(map(str, names)))


def _class_of(label: Label) -> ClassName:
    """A class as JSON would have it: whole numbers, which tables hold as text, are numbers."""
    if isinstance(label, float):
        return int(label) if label.is_integer() else str(label)
    return int(label) if isinstance(label, str) and _WHOLE.fullmatch(label) else label


def _is_whole(label: Label) -> bool:
    return isinstance(label, int) or (isinstance(label, str) and label.lstrip("+-").isdecimal())


def _as_number(label: Label) -> float | None:
    try:
        return float(label)
    except (ValueError, OverflowError):
        return None


def _bad_label(place: str, value: object, expected: str, meant: str = "") -> DataError:
    got = "no label (nothing, null or NaN)" if value is None else f"{type(value).__name__} {shorten(repr(value))}"
    fix = f"{meant} Else {FIX_ROW}" if meant else FIX_ROW
    return DataError(f"{place}: the label cannot be used.", got=got, expected=expected, fix=fix)
