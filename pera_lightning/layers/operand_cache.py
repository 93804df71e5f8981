"""An adapter's operands, kept while nothing they were made of changes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor, nn

from pera_lightning.functional.operands import Operands


class OperandCache:
    """Holds the expanded factors of one layer between calls in eval mode.

    They count as long as the parameters are the same memory at the same version. Every in-place operation moves
    torch's version counter: optimizer steps, `load_state_dict`, `copy_`. An edit through `parameter.data` and the step
    of a fused optimizer move none; a forward pass with gradients forgets what is held, and so does `layer.eval()`.
    Copies and pickles of a layer start with an empty cache.
    """

    def __init__(self) -> None:
        # Key, parameters, operands; the parameters so that no other tensors can take their place in memory. Replaced as
        # one, because nn.DataParallel's replicas share it between threads.
        self._held: tuple[tuple[Hashable, ...], tuple[Tensor | None, ...], Operands] | None = None

    def get(
        self, parameters: tuple[Tensor | None, ...], key: tuple[Hashable, ...], prepare: Callable[[], Operands]
    ) -> Operands:
        """What is held for these parameters and this key; made by `prepare` if nothing is.

        Args:
            parameters: What the operands are made of; each one `tells_changes`.
            key: Whatever else they depend on.
            prepare: Makes them.
        """
        for parameter in parameters:
            if parameter is not None:
                key += (parameter.data_ptr(), parameter._version)
        held = self._held
        if held is None or held[0] != key or not all(map(operator.is_, held[1], parameters)):
            held = self._held = (key, parameters, prepare())
        return held[2]

    def clear(self) -> None:
        """Forget everything."""
        self._held = None

    def __reduce__(self) -> tuple[Any, ...]:
        return OperandCache, ()


def tells_changes(parameter: Tensor | None) -> bool:
    """Whether a change of the parameter can be noticed: not if it is an inference tensor, or sharded."""
    return parameter is None or (type(parameter) is nn.Parameter and not parameter.is_inference())
