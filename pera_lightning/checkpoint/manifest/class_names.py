"""What the outputs of a classifier are called, in its config and in an adapter folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_UNNAMED = re.compile(r"LABEL_\d+")
"""What transformers calls a class that has no name."""
REGRESSION = "regression"
"""What a transformers config calls the problem of a model with one output, a score."""


def class_names(model: Any) -> tuple[str, ...]:
    """Names of the outputs of a model that classifies texts, in their order; of any other model none."""
    names = getattr(getattr(model, "config", None), "id2label", None)
    # What torch.compile returns stands for the model within.
    kind = type(getattr(model, "_orig_mod", model)).__name__
    if "ForSequenceClassification" not in kind or not isinstance(names, dict):
        return ()
    return tuple(str(names[number]) for number in sorted(names))


def are_named(names: Sequence[str]) -> bool:
    """Whether somebody has named the classes."""
    return any(not _UNNAMED.fullmatch(name) for name in names)


def as_config(names: Sequence[int | str]) -> dict[str, Any]:
    """The fields of a transformers config that name its classes; one output is a score."""
    return {
        **({"problem_type": REGRESSION} if len(names) == 1 else {}),
        "id2label": {number: str(name) for number, name in enumerate(names)},
        "label2id": {str(name): number for number, name in enumerate(names)},
    }


def name_classes(model: Any, names: Sequence[int | str]) -> None:
    """Put the names of its classes into the config of a classifier that has so many; others stay as they are."""
    if len(class_names(model)) == len(names):
        for field, value in as_config(names).items():
            setattr(model.config, field, value)
