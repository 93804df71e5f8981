"""The classes of a classifier: what it is told, what its data says, and what a checkpoint was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pera_lightning.errors import CheckpointError, ConfigError, shown

ClassNames = Sequence[int | str]


def agreed_labels(data: Any, number: int | None, names: ClassNames | None) -> tuple[int, list[int | str] | None]:
    """Number of outputs, and the names of the classes where anybody knows them.

    Args:
        data: The data module, if there is one; it may have `num_labels` and `labels`.
        number: What the classifier was told or knows from before; None takes what the data module says.
        names: Likewise.

    Raises:
        ConfigError: Nothing says how many labels there are, or the two say different things.
    """
    offered, offered_names = getattr(data, "num_labels", None), getattr(data, "labels", None) or None
    if names and offered_names and not same_classes(names, offered_names):
        raise ConfigError(
            "The data has other classes than the model, or in another order.",
            got=f"{type(data).__name__} with {shown(list(offered_names))}",
            expected=f"{shown(list(names))}, as the model has them",
            fix="set the data's labels to those of the model, or leave the model's labels out",
        )
    found = offered if number is None else number
    if found is None:
        raise ConfigError(
            "The number of labels is not known.",
            got="num_labels=None and data that does not say it either",
            expected="a number of classes, or 1 for a regression",
            fix="set num_labels",
        )
    other = f"{type(data).__name__} with {offered}" if offered else f"labels with {len(names or ())}"
    if offered not in (None, found) or (names and len(names) != found):
        raise ConfigError(
            "The data has another number of labels than the model.",
            got=f"num_labels={found}, and {other}",
            expected="the same number",
            fix="leave num_labels out, or change the data",
        )
    chosen = names or offered_names
    return found, list(chosen) if chosen else None


def same_classes(ours: ClassNames, theirs: ClassNames) -> bool:
    """Whether they are the same in the same order; a number is the same as its text."""
    return list(map(str, ours)) == list(map(str, theirs))


def refuse_other_classes(held: Any, own: ClassNames | None) -> None:
    """Raise CheckpointError if a checkpoint was trained on other classes, or in another order.

    Args:
        held: The names in the checkpoint.
        own: Those of the run.
    """
    if not own or not isinstance(held, list) or not held or same_classes(own, held):
        return
    raise CheckpointError(
        "The checkpoint is of a classifier of other classes, or in another order.",
        got=shown(held),
        expected=shown(list(own)),
        fix="set the data's labels to those of the checkpoint; to train on other classes, fit anew",
    )
