"""The tensors that belong to the adapter of a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from pera_lightning.concurrency import in_turn, reading
from pera_lightning.errors import PeraError
from pera_lightning.functional.distributed import is_distributed, own_part
from pera_lightning.injection import adapter_layers, saved_tensors


def adapter_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The adapter of a model as a flat dict, as `save_adapter` writes it.

    Args:
        model: A module with adapters.

    Returns:
        `<module path>.pera_A` (rank, in), `.pera_B` (out, rank), `.pera_h` (number of monomials,),
        `.token_rows.delta` (number of tokens, dim) where rows are trained (once for tied weights), and every
        parameter and persistent buffer of the modules saved whole, and the trained biases; detached, sharing memory
        with the model.
        Paths are relative to `model` and free of wrapper names such as `_orig_mod`. Empty without adapters.
    """
    with reading(model):
        return {key: value.detach() for key, value in _adapter_tensors(model)}


def _adapter_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for path, layer in adapter_layers(model):
        for name, parameter in layer.adapter().items():
            yield f"{path}.{name}", parameter
    yield from saved_tensors(model)


@in_turn
def copy_into(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy checked tensors into the model's adapter, to its dtypes and devices; every process has them all."""
    wanted = adapter_state_dict(model)
    if any(map(is_distributed, wanted.values())):
        _reshard(model)
        wanted = adapter_state_dict(model)
    for key, target in wanted.items():
        own_part(target).copy_(_part_of(tensors[key], target))


def _reshard(model: nn.Module) -> None:
    # After a forward pass the outermost module keeps whole copies, which new values would be lost in.
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()  # type: ignore[operator]


def _part_of(value: Tensor, target: Any) -> Tensor:
    """The part of a whole tensor, which every process has, that this one keeps. No communication."""
    if not is_distributed(target):
        return value
    from torch.distributed.tensor import DTensor, Replicate

    mesh = target.device_mesh
    value = value.to(target.device)
    same = DTensor.from_local(value, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return same.redistribute(placements=target.placements).to_local()


def refuse_merged(model: nn.Module, error: type[PeraError]) -> None:
    """Raise `error` if new values would not show, because an adapter is merged."""
    merged = [name for name, layer in adapter_layers(model) if layer.merged]
    if merged:
        raise error(
            "New values of a merged adapter would have no effect.",
            got=f"{len(merged)} merged layers, e.g. {merged[0]!r}",
            expected="an unmerged adapter",
            fix="call unmerge() on the layers first",
        )
