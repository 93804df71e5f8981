"""Which fields of a row hold its text, or its pair of texts, and its label."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from pera_lightning.data.reading.parsed_row import Row
from pera_lightning.did_you_mean import did_you_mean, near
from pera_lightning.errors import ConfigError

_PAIRS = (
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
)
_TEXTS = ("text", "sentence")
_LABELS = ("label", "class", "score")


@dataclass(frozen=True)
class ChosenFields:
    """The names that somebody gives; None is found among the usual ones."""

    text: str | None = None
    text_pair: str | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        if self.text_pair is not None and self.text is None:
            raise ConfigError(
                "text_pair_field names the second text of a pair, and nothing the first.",
                got=f"text_pair_field {self.text_pair!r} without text_field",
                expected="both",
                fix="set text_field to the field of the first text",
            )

    def texts_of(self, row: Row) -> tuple[str, ...]:
        """The fields of the texts, by the first row of a source.

        Raises:
            ConfigError: It does not have those that were chosen, or none that is usual.
        """
        if self.text is not None:
            chosen = {"text_field": self.text, "text_pair_field": self.text_pair}
            return tuple(_known(name, row, option) for option, name in chosen.items() if name is not None)
        for usual in (*_PAIRS, *((name,) for name in _TEXTS)):
            if all(name in row.fields for name in usual):
                return usual
        raise _not_found(row, "text_field", _TEXTS)

    def label_of(self, row: Row, *, needed: bool) -> str | None:
        """The field of the label, likewise.

        Args:
            row: The first row of a source.
            needed: Whether there has to be one.

        Raises:
            ConfigError: It has to be, and is not there.
        """
        usual = _LABELS if self.label is None else (self.label,)
        found = next((name for name in usual if name in row.fields), None)
        if found is None and needed:
            if self.label is not None:
                return _known(self.label, row, "label_field")
            raise _not_found(row, "label_field", _LABELS)
        return found


def _known(name: str, row: Row, option: str) -> str:
    if name in row.fields:
        return name
    raise ConfigError(
        f"{option} names a field that the rows do not have.",
        got=f"{name!r}; {row.where} has {_fields(row)}",
        expected="one of them",
        fix=did_you_mean(near(name, row.fields), f"correct {option}"),
    )


def _not_found(row: Row, option: str, usual: Collection[str]) -> ConfigError:
    likely = [found for name in usual for found in near(name, row.fields)]
    return ConfigError(
        f"No field has a name that says it is the one of {option}.",
        got=f"{row.where} has {_fields(row)}",
        expected=f"{' or '.join(usual)}, or another name in {option}",
        fix=f"set {option} to the field" + (f", perhaps {' or '.join(dict.fromkeys(likely))}" if likely else ""),
    )


def _fields(row: Row) -> str:
    return ", ".join(map(str, row.fields)) or "no fields"
