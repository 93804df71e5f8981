"""What a classifier calls its classes under each adapter of a set."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from pera_lightning.checkpoint.manifest.class_names import class_names, name_classes


class ClassesByAdapter:
    """The names of the classes in the config of one model; of a model without classes nothing.

    Args:
        model: The model; its names now are those of the base.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._base = class_names(model)
        self._names: dict[str, tuple[str, ...]] = {}

    def keep(self, adapter: str) -> None:
        """Keep the model's present names for an adapter."""
        self._names[adapter] = class_names(self._model)

    def keep_mixture(self, adapter: str, parts: Iterable[str]) -> None:
        """Keep for a mixture the names of its parts; those of the base, if the parts have different ones."""
        found = {self._names.get(part, self._base) for part in parts}
        self._names[adapter] = found.pop() if len(found) == 1 else self._base

    def put(self, adapter: str | None) -> None:
        """Give the model the names for an adapter, or for the base alone."""
        names = self._base if adapter is None else self._names.get(adapter, self._base)
        if names:
            name_classes(self._model, names)
