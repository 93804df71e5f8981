"""Splitting adapted layers over processes: tensor parallelism."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from pera_lightning.errors import TargetError
from pera_lightning.layers.pera_linear import PeraLinear


def parallelize_adapted(module: nn.Module, mesh: DeviceMesh, plan: Mapping[str, ParallelStyle]) -> nn.Module:
    """Torch's `parallelize_module` for a module with adapted layers.

    Adapted layers are split as their base is. Column-wise, A and h are replicated and B is split over its rows;
    row-wise, A is split over its columns, B and h are replicated. Going forward, adapters add no communication to that
    of the plan; going back, the gradients of replicated factors are summed over the processes.

    Args:
        module: A model or a block of it, with or without adapters.
        mesh: The one-dimensional mesh to split over, `device_mesh["tensor_parallel"]` under `ModelParallelStrategy`.
        plan: Name of a layer (each part may be `*`) -> style, as for `parallelize_module`; of adapted layers
            `ColwiseParallel` or `RowwiseParallel`.

    Returns:
        The module.

    Raises:
        TargetError: An adapted layer has another style, or a base that cannot be split.
    """
    return parallelize_module(module, mesh, {name: _AdaptedParallel(style) for name, style in plan.items()})


class _AdaptedParallel(ParallelStyle):
    """A style for a layer that may be adapted."""

    def __init__(self, style: ParallelStyle) -> None:
        super().__init__()
        self.style = style

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        if not isinstance(module, PeraLinear):
            return _split(module, device_mesh, self.style)
        _check(module, self.style)
        style: Any = self.style
        # The base takes and gives distributed tensors, as they are: the adapter's part is to join its output before
        # that is gathered or summed up, which is done around both.
        if isinstance(style, ColwiseParallel):
            wanted: Placement = Replicate()
            inner: ParallelStyle = ColwiseParallel(use_local_output=False)
            placements: dict[str, Placement] = {"pera_A": Replicate(), "pera_B": Shard(0), "pera_h": Replicate()}
        else:
            inner = RowwiseParallel(output_layouts=Partial(), use_local_output=False)
            wanted, placements = Shard(-1), {"pera_A": Shard(1), "pera_B": Replicate(), "pera_h": Replicate()}
        _split(module.base_layer, device_mesh, inner)
        for name, factor in module.adapter().items():
            split = distribute_tensor(factor.data, device_mesh, [placements[name]])
            module.register_parameter(name, nn.Parameter(split, requires_grad=factor.requires_grad))

        # Any: torch's annotation knows only of functions that return nothing.
        def distribute(_: nn.Module, inputs: Any, mesh: DeviceMesh) -> Any:
            return (_placed(inputs[0], mesh, style.input_layouts, (wanted,)), *inputs[1:])

        def gather(_: nn.Module, output: DTensor, mesh: DeviceMesh) -> Any:
            placed = _placed(output, mesh, output.placements, style.output_layouts)
            if not style.use_local_output:
                return placed
            local = placed.to_local()
            # No view to autograd any more, which lets nobody change views of torch's own Function in place.
            return torch.ops.aten._unsafe_view.default(local, local.shape)

        return distribute_module(module, device_mesh, input_fn=distribute, output_fn=gather)


def _split(module: nn.Module, mesh: DeviceMesh, style: ParallelStyle) -> nn.Module:
    # Some versions of torch put parameters in place that are trained, whatever was there before.
    trained = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    parallelize_module(module, mesh, style)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(trained[name])
    return module


def _placed(x: Any, mesh: DeviceMesh, given: tuple[Placement, ...], wanted: tuple[Placement, ...]) -> DTensor:
    if not isinstance(x, DTensor):
        x = DTensor.from_local(x, mesh, given, run_check=False)
    return x if x.placements == wanted else x.redistribute(placements=wanted)


def _check(layer: PeraLinear, style: ParallelStyle) -> None:
    if not isinstance(style, ColwiseParallel | RowwiseParallel):
        raise TargetError(
            "An adapted layer cannot be split like this.",
            got=type(style).__name__,
            expected="ColwiseParallel or RowwiseParallel",
            fix="leave the layer out of the plan, or out of target_modules",
        )
    if not isinstance(layer.base_layer, nn.Linear) or layer.quantization is not None:
        raise TargetError(
            "The base of an adapted layer cannot be split over processes.",
            got=layer.quantization or type(layer.base_layer).__name__,
            expected="nn.Linear, not quantised",
            fix="shard it instead (fully_shard; ModelParallelStrategy with tensor_parallel_size=1), or leave it out of "
            "the plan",
        )
