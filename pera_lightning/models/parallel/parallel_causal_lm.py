"""A causal language model under `ModelParallelStrategy`: built on the meta device, sharded, then given its weights."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel

from pera_lightning.base_layers import QUANTIZATIONS, Quantization
from pera_lightning.errors import ConfigError, InjectionError, PeraError, one_line
from pera_lightning.injection import original_names
from pera_lightning.injection.sharding import shard_placement, sharding_function, start_on
from pera_lightning.layers import TokenRows
from pera_lightning.layers.parallelize import parallelize_adapted
from pera_lightning.loading.pretrained import PretrainedSource, build_causal_lm

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ParallelBuild:
    """A model on its way to being sharded: built, then given adapters by others, then finished.

    Collective: every process makes and finishes one.

    Args:
        load: Loads the model with its weights.
        source: Where it loads from.
        mesh: Of two dimensions, "data_parallel" and "tensor_parallel", as Lightning makes it.
        quantization: How bitsandbytes stores the linear layers. Then every process loads the whole model and keeps its
            part of it when it is sharded; else the first process alone loads the weights.

    Attributes:
        model: The model, in eval mode; on the meta device if it is not quantised.

    Raises:
        ConfigError: torch is too old.
        PeraError: What `load` raises.
        InjectionError: Loading failed in the first process.
    """

    def __init__(
        self,
        load: Callable[[], PreTrainedModel],
        source: PretrainedSource,
        mesh: DeviceMesh,
        quantization: Quantization | None,
    ) -> None:
        # What it raises comes before anything is loaded.
        sharding_function(packed=quantization is not None and QUANTIZATIONS[quantization].packed)
        self._mesh = mesh
        self._meta = MetaModel(load, source) if quantization is None else None
        self.model = load() if self._meta is None else self._meta.model

    def finish(self, device: torch.device) -> None:
        """Shard the model and let every process have its part of the weights.

        Args:
            device: Of this process.

        Raises:
            ConfigError: The model cannot be split over so many processes.
        """
        shard_causal_lm(self.model, self._mesh, device)
        if self._meta is not None:
            self._meta.fill(device)


STYLES: dict[str, Callable[[], ParallelStyle]] = {"colwise": ColwiseParallel, "rowwise": RowwiseParallel}
"""Names in the plans of transformers -> how torch splits a layer. What a plan names otherwise stays whole."""


class MetaModel:
    """A model without memory, whose weights wait in the first process until it is sharded.

    Collective: every process makes one. An error of the first process is raised in all of them.

    Args:
        load: Loads the model with its weights; called in the first process.
        source: Where it loads from.

    Attributes:
        model: The model on the meta device, in eval mode.

    Raises:
        PeraError: What `load` raises.
        InjectionError: Loading failed in the first process.
    """

    def __init__(self, load: Callable[[], PreTrainedModel], source: PretrainedSource) -> None:
        self._loaded: PreTrainedModel | None = None
        told: list[Any] = [None, None, None, None]
        if torch.distributed.get_rank() == 0:
            try:
                self._loaded = loaded = load()
            except Exception as error:
                torch.distributed.broadcast_object_list([_portable(error), None, None, None])
                raise
            told = [None, loaded.dtype, loaded.config._attn_implementation, loaded.generation_config]
        torch.distributed.broadcast_object_list(told)
        failure, dtype, attention, generation_config = told
        if failure is not None:
            raise failure
        self.model = build_causal_lm(source, dtype=dtype, attn_implementation=attention)
        self.model.generation_config = generation_config

    @torch.no_grad()
    def fill(self, device: torch.device) -> None:
        """Give the sharded model memory and spread the weights, tensor by tensor; no process but the first has all.

        Args:
            device: Of this process.
        """
        # Imported late: torch's part for distributed checkpoints is large.
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

        model = self.model
        for module in model.modules():
            own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
            if any(tensor.is_meta for tensor in own):
                module.to_empty(device=device, recurse=False)
        model.tie_weights()
        loaded, self._loaded = self._loaded, None
        weights, buffers = ({}, {}) if loaded is None else (loaded.state_dict(), dict(loaded.named_buffers()))
        originals = dict(_original_keys(model))
        set_model_state_dict(
            model,
            {key: weights[original] for key, original in originals.items() if original in weights},
            # Not strict: the adapter has no weights there.
            options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False),
        )
        # State dicts leave out what can be computed again (rotary frequencies), but here nothing was computed.
        for key, buffer in model.named_buffers():
            if key in originals:
                if loaded is not None:
                    buffer.copy_(buffers[originals[key]])
                torch.distributed.broadcast(buffer, src=0)


def shard_causal_lm(model: PreTrainedModel, mesh: DeviceMesh, device: torch.device) -> None:
    """Split a model by its own tensor-parallel plan, then shard it block by block.

    Weights in 4 bits are sharded packed, their scales are not; weights in 8 bits stay whole in each process.

    Args:
        model: The model, with its adapters, on the meta device or with its weights.
        mesh: Of two dimensions, "data_parallel" and "tensor_parallel", as Lightning makes it.
        device: Of this process; adapters on the meta device get memory and start values there.

    Raises:
        ConfigError: The model cannot be split over so many processes.
    """
    start_on(model, device)
    ranks = mesh["tensor_parallel"].size()
    if ranks > 1:
        parallelize_adapted(model, mesh["tensor_parallel"], tensor_parallel_plan(model, ranks))
    # A single process shards too: checkpoints of several go on in it.
    if mesh["data_parallel"].size() > 1 or ranks == 1:
        shard_blocks(model, mesh["data_parallel"])


def shard_blocks(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a model block by block, and then what is in none.

    Args:
        model: The model, with its adapters.
        mesh: Of one dimension: the processes that share it.

    Raises:
        ConfigError: torch is too old.
    """
    fully_shard = sharding_function(packed=any(map(_is_packed, model.parameters())))
    options: dict[str, Any] = {
        "mesh": mesh,
        "ignored_params": set(_whole(model)),
        "shard_placement_fn": shard_placement(mesh.size()),
    }
    for block in blocks(model):
        fully_shard(block, **options)
    fully_shard(model, **options)


def blocks(model: nn.Module) -> list[nn.Module]:
    """The transformer blocks of a model: the modules in its outermost list; empty if it has none."""
    return next((list(module) for module in model.modules() if isinstance(module, nn.ModuleList)), [])


def tensor_parallel_plan(model: PreTrainedModel, ranks: int) -> dict[str, ParallelStyle]:
    """The model's own plan, in torch's styles: layer name -> style.

    Args:
        model: The model, with or without adapters.
        ranks: Over how many processes.

    Raises:
        ConfigError: It has no plan, one with layers of other kinds, or sizes that so many processes do not divide.
    """
    own: dict[str, str] = getattr(model.config, "base_model_tp_plan", None) or {}
    other = sorted(name for name, style in own.items() if style not in STYLES and not _may_stay_whole(style))
    if not own or other:
        raise _cannot_split(
            f"{type(model).__name__} with {other[0] + ': ' + own[other[0]] if other else 'no plan of its own'}",
            "a model whose base_model_tp_plan splits linear layers by columns and rows",
        )
    config: Any = model.config
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        size = getattr(config, name, ranks)
        if size % ranks:
            raise _cannot_split(f"{name}={size} over {ranks} processes", f"a multiple of {ranks}")
    prefix = next(name for name, module in model.named_modules() if module is model.base_model)
    above = f"{prefix}." if prefix else ""
    return {above + name: STYLES[style]() for name, style in own.items() if style in STYLES}


def _may_stay_whole(style: str) -> bool:
    # Heads and embeddings, and norms whose gradients would have to be summed up if they were trained.
    return fnmatch.fnmatch(style, "embedding_*") or style in ("colwise_gather_output", "replicated_with_grad_allreduce")


def _cannot_split(got: str, expected: str) -> ConfigError:
    return ConfigError(
        "The model cannot be split over processes (tensor parallelism).",
        got=got,
        expected=expected,
        fix="set another tensor_parallel_size in ModelParallelStrategy; 1 shards the weights over all instead",
    )


def _whole(model: nn.Module) -> Iterator[nn.Parameter]:
    # LLM.int8() keeps its scales beside the parameter, which sharding exchanges.
    return (parameter for parameter in model.parameters() if parameter.dtype == torch.int8)


def _is_packed(parameter: nn.Parameter) -> bool:
    return not parameter.is_floating_point() and parameter.dtype != torch.int8


def _original_keys(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of the base's parameters and buffers now and before the injection."""
    names = dict(zip((name for name, _ in model.named_modules()), original_names(model), strict=True))
    for name, (original, module) in names.items():
        # Their ids belong to the adapter.
        if isinstance(module, TokenRows):
            continue
        tensors: dict[str, Tensor | None] = {**module._parameters, **module._buffers}
        for own in tensors:
            yield f"{name}.{own}" if name else own, f"{original}.{own}" if original else own


def _portable(error: Exception) -> Exception:
    """The error as other processes can raise it."""
    if isinstance(error, PeraError):
        return error
    return InjectionError(
        "The first process could not load the model.",
        got=one_line(error),
        expected="a model that can be loaded",
        fix="see the traceback of the first process",
    )
