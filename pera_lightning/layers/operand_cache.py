"""An adapter's operands, kept while nothing they were made of changes."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor

from pera_lightning.functional.operands import Operands


class OperandCache:
    """Holds the expanded factors of one layer between calls in eval mode.

    They count as long as the parameters are the same memory at the same version. Every in-place operation moves
    torch's version counter: optimizer steps, `load_state_dict`, `copy_`. An edit through `parameter.data` and the step
    of a fused optimizer move none; a forward pass with gradients forgets what is held, and so does `layer.eval()`.
    Copies and pickles of a layer start with an empty cache.
    """

    def __init__(self) -> None:
        self._key: Hashable = None
        # Held so that no other tensor can take their place in memory.
        self._parameters: tuple[Tensor | None, ...] = ()
        self._operands: Operands | None = None

    def get(
        self, parameters: tuple[Tensor | None, ...], key: tuple[Hashable, ...], prepare: Callable[[], Operands]
    ) -> Operands:
        """What is held for these parameters and this key; made by `prepare` if nothing is.

        Args:
            parameters: What the operands are made of.
            key: Whatever else they depend on.
            prepare: Makes them.
        """
        for parameter in parameters:
            if parameter is not None:
                key += (parameter.data_ptr(), parameter._version)
        if self._operands is None or key != self._key:
            self._key, self._parameters, self._operands = key, parameters, prepare()
        return self._operands

    def clear(self) -> None:
        """Forget everything."""
        self._key, self._parameters, self._operands = None, (), None

    def __reduce__(self) -> tuple[Any, ...]:
        return OperandCache, ()
