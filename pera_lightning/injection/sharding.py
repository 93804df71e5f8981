"""Adapters over bases that are sharded over processes (torch's `fully_shard`, FSDP2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pera_lightning.errors import InjectionError
from pera_lightning.functional.distributed import is_distributed, own_part
from pera_lightning.injection.inject import adapter_parameters
from pera_lightning.injection.targets.names import adapter_layers
from pera_lightning.layers import stored_weight
from pera_lightning.requirements import SHARDS_INTEGERS, require

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import Shard


def sharding_function(packed: bool = False) -> Callable[..., Any]:
    """The `fully_shard` of torch, with `ignored_params` and `shard_placement_fn`, which averages gradients on CPUs too.

    Args:
        packed: Whether weights in 4 bits, which are no floating numbers, are to be sharded.

    Raises:
        ConfigError: torch is too old.
    """
    require("FSDP2", "torch")
    if packed:
        instead = "; or use int8, or strategy ddp, under which each process holds the whole base"
        require("FSDP2 of a base in 4 bits", "torch", oldest=SHARDS_INTEGERS, instead=instead)
    from torch.distributed.fsdp import FSDPModule, fully_shard

    def shard(module: nn.Module | list[nn.Module], *, mesh: DeviceMesh, **options: Any) -> None:
        fully_shard(module, mesh=mesh, **options)
        group = module[0] if isinstance(module, list) else module
        if mesh.device_type == "cpu" and isinstance(group, FSDPModule):
            # gloo has sums alone; torch before 2.11 asks it for averages and takes what it gets for them.
            group.set_force_sum_reduction_for_comms(True)

    return shard


def shard_placement(ranks: int) -> Callable[[nn.Parameter], Shard | None]:
    """The `shard_placement_fn` of torch's `fully_shard` for adapted models: A may be sharded over its columns.

    `fully_shard` pads every parameter to a multiple of the processes in its first dimension. A has only `rank` rows
    (trained token rows: one for each token): beyond that number of processes, what travels would grow with them.

    Args:
        ranks: Processes of the mesh that is sharded over.

    Returns:
        Parameter -> where it is sharded; None: torch's default, the first dimension.
    """
    from torch.distributed.tensor import Shard

    def place(parameter: nn.Parameter) -> Shard | None:
        # The part of this process, of what tensor parallelism has split: fully_shard splits that.
        dimension = shard_dimension(own_part(parameter).shape, ranks) if parameter.requires_grad else 0
        return Shard(dimension) if dimension else None

    return place


def shard_dimension(shape: Sequence[int], ranks: int) -> int:
    """The dimension in which a trained parameter is sharded over so many processes.

    Its rows where they divide evenly: each part is then a piece of memory as it is, while torch copies columns once
    more after gathering and before reducing. Else, of a matrix with fewer rows than columns, its columns if they divide
    evenly (torch demands that), since a copy within a GPU is cheaper than padding that travels.
    """
    if len(shape) != 2 or shape[0] % ranks == 0:
        return 0
    rows, columns = shape
    return 1 if rows < columns and columns % ranks == 0 else 0


def shard_adapters(model: nn.Module) -> None:
    """Shard adapters that were injected into a model after it was sharded.

    The adapters of a sharded block are a group of their own: gathered and reduced together, over the block's mesh.
    What is sharded already stays as it is.

    Args:
        model: A model whose blocks and root were given to `fully_shard`.

    Raises:
        ConfigError: torch is too old.
        InjectionError: Some adapted layer is in no sharded module, or split by tensor parallelism.
    """
    fully_shard = sharding_function()
    waiting = [
        (name, layer)
        for name, layer in adapter_layers(model)
        if any(not is_distributed(parameter) for parameter in layer.adapter().values())
    ]
    _refuse_split(waiting)
    blocks = _sharded_blocks(model)
    groups: dict[int, list[nn.Module]] = {}
    for name, layer in waiting:
        if id(layer) not in blocks:
            raise InjectionError(
                "An adapter is in no sharded module; processes would train it each for itself.",
                got=f"{name!r} in no module that fully_shard was called with",
                expected="a model that is sharded as a whole",
                fix="call fully_shard for the whole model too, after its blocks",
            )
        groups.setdefault(id(blocks[id(layer)]), []).append(layer)
    for layers in groups.values():
        block = blocks[id(layers[0])]
        own = {id(parameter) for layer in layers for parameter in layer.adapter().values()}  # type: ignore[operator]
        others = {parameter for layer in layers for parameter in layer.parameters() if id(parameter) not in own}
        mesh = next(parameter.device_mesh for parameter in block.parameters() if is_distributed(parameter))  # type: ignore[attr-defined]
        placement = shard_placement(mesh.size())
        fully_shard(layers, mesh=mesh, ignored_params=others, shard_placement_fn=placement)


def unsharded(model: nn.Module, mesh: DeviceMesh) -> list[str]:
    """Names of the adapter's parameters that the processes of a mesh do not share: each would train its own."""
    own, ranks = {id(parameter) for parameter in adapter_parameters(model)}, _ranks(mesh)
    return [
        name
        for name, value in model.named_parameters()
        if id(value) in own and not (is_distributed(value) and ranks <= _ranks(value.device_mesh))  # type: ignore[attr-defined]
    ]


def _ranks(mesh: DeviceMesh) -> set[int]:
    return set(mesh.mesh.flatten().tolist())


@torch.no_grad()
def start_on(model: nn.Module, device: torch.device) -> None:
    """Give adapters that were injected on the meta device memory and their start values.

    They are drawn as they would be over a base that is there, in the same order.
    """
    for _, layer in adapter_layers(model):
        without_memory = list(_without_memory(layer))
        for owner, name, parameter in without_memory:
            empty = torch.empty_like(parameter, device=device)
            owner.register_parameter(name, nn.Parameter(empty, requires_grad=parameter.requires_grad))
        if without_memory:
            layer.reset_parameters()


def _without_memory(layer: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    for path, parameter in layer.adapter().items():  # type: ignore[operator]
        above, _, name = path.rpartition(".")
        if parameter.is_meta:
            yield layer.get_submodule(above), name, parameter


def _sharded_blocks(model: nn.Module) -> dict[int, nn.Module]:
    """Id of a module -> the innermost module that was given to `fully_shard` and holds it."""
    from torch.distributed.fsdp import FSDPModule

    # Parents come before their children, which then have the last word.
    sharded = (module for module in model.modules() if isinstance(module, FSDPModule))
    return {id(part): block for block in sharded for part in block.modules() if part is not block}


def _refuse_split(layers: Iterable[tuple[str, nn.Module]]) -> None:
    from torch.distributed.tensor import Shard

    for name, layer in layers:
        weight = stored_weight(layer)  # type: ignore[arg-type]
        # fully_shard splits along the first dimension only, and along one dimension of the mesh.
        placements = getattr(weight, "placements", ())
        if len(placements) > 1 or any(isinstance(placement, Shard) and placement.dim != 0 for placement in placements):
            raise InjectionError(
                "The base was split (tensor parallelism) before the adapters came, which cannot be split after it.",
                got=f"{name!r} with placements {tuple(placements)}",
                expected="a base that is split together with its adapters",
                fix="move parallelize_module and fully_shard from configure_model() to a method shard_model() of your "
                "LightningModule, which PeraCallback calls after injecting, and use parallelize_adapted(module, mesh, "
                "plan) of pera_lightning in place of parallelize_module",
            )
