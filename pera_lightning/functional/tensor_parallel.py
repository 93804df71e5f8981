"""The adapter of a linear layer that torch's tensor parallelism splits over processes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pera_lightning.functional.call import Options
from pera_lightning.functional.distributed import is_distributed
from pera_lightning.functional.linear import add_adapter


def local_part(factor: Any) -> Any:
    """This process's part of a factor; of a replicated one all of it, and its gradients are summed over processes."""
    from torch.distributed.tensor import Partial

    if factor is None or not is_distributed(factor):
        return factor
    if not all(placement.is_replicate() for placement in factor.placements):
        return factor.to_local()
    # Each process sees its part of the layer only. On the way back, redistributing sums up what they found.
    return factor.redistribute(placements=factor.placements).to_local(grad_placements=[Partial()])


def add_local_adapter(output: Any, x: Any, A: Tensor, B: Tensor, h: Tensor | None, options: Options) -> Tensor:
    """`add_adapter` on what this process holds of a split layer. No communication of its own going forward.

    Column-wise, B and the output are split over the layer's outputs. Row-wise, x and A are split over its inputs, and
    the output is a sum of which each process holds a part: the adapter's part joins it before the base adds them up.
    Monomials multiply rows of A, and columns of B, element by element, so that the expansion of a part is the part of
    the expansion.

    Args:
        output: DTensor (..., out), the base layer's output.
        x: DTensor (..., in), or the plain tensor where it is replicated.
        A: This process's part of A.
        B: Of B.
        h: Coefficients, whole, without their constant factors.
        options: The adapter's form, and how to compute.

    Returns:
        DTensor of the shape and placements of `output`.
    """
    from torch.distributed.tensor import DTensor, Partial, Replicate

    replicated = x.placements[0].is_replicate()
    x = x.to_local(grad_placements=[Partial()] if replicated else x.placements)
    # What is added to a part of a sum is a part of it too, and its gradient is that of the whole.
    partial = output.placements[0].is_partial()
    local = output.to_local(grad_placements=[Replicate()] if partial else output.placements)
    local = add_adapter(local, x, A, B, h, options)
    return DTensor.from_local(
        local, output.device_mesh, output.placements, run_check=False, shape=output.shape, stride=output.stride()
    )
