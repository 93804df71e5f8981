"""`merge_adapter`: from an adapted model to a plain one."""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pera_lightning.base_layers import base_of, expect_base
from pera_lightning.concurrency import in_turn
from pera_lightning.errors import ConfigError, InjectionError
from pera_lightning.export.merged.merge_overflow import refuse_sums_beyond
from pera_lightning.export.merged.merge_report import MergeReport, Norms, rounding_norms
from pera_lightning.export.merged.room import check_room
from pera_lightning.export.probe import probe_outputs, relative_error
from pera_lightning.export.rounding import Rounding, measured_rounding, row_differences
from pera_lightning.injection import adapted_layers, adapter_layers, clean_name, token_layers
from pera_lightning.injection.inject import take_out
from pera_lightning.injection.quantization.loftq import check_float_model, float_weight
from pera_lightning.injection.replacement import replace_modules
from pera_lightning.injection.shared_memory import SharedMemory
from pera_lightning.layers import PeraLinear, TokenRowsLayer, stored_weight
from pera_lightning.layers.call_hooks import carry_hooks
from pera_lightning.layers.merging import overwrite, refuse_infinite, refuse_more
from pera_lightning.visible_text import visible_logger

logger = visible_logger(__name__)

MergeInto = Literal["auto", "dequantized", "original", "requantized"]
WAYS: tuple[MergeInto, ...] = ("dequantized", "original", "requantized")


def merge_adapter(
    model: nn.Module,
    *,
    into: MergeInto = "auto",
    original: nn.Module | None = None,
    probe: Any = None,
) -> nn.Module:
    """Fold every adapter into its base weight and put plain layers back, in place. All or nothing.

    Dense bases are overwritten: the merged model computes what the adapted one did, up to the rounding to the base's
    dtype. Over a quantised base there are three ways:

    - "dequantized" ("auto"): plain layers of the dequantised weight plus the adapter, in the dtype of the model's norms
      (16 bits on a GPU). What was trained is what comes out; takes the memory of the floating model. Layers without an
      adapter are dequantised too.
    - "original": the weights before quantisation plus the adapter. The adapter has learned to make up for errors of
      quantisation that are no longer there.
    - "requantized": the sum is quantised again, as the base was. Smallest; rounds most of a small update away.

    A report with the relative errors of weights and outputs is logged (at level INFO), and a warning if the outputs
    changed by more than rounding where they should not have.

    Args:
        model: A model with adapters.
        into: The way of merging quantised bases.
        original: For "original": a module with the floating weights under the same names.
        probe: What to call the model with, before and after, to report the error of its outputs: a tensor, a tuple of
            arguments or a dict of keyword arguments. Language models have one by default.

    Returns:
        The same model without adapters. Modules saved whole keep their trained values.

    Raises:
        ConfigError: The options do not go together.
        InjectionError: The model holds no adapter, an adapter holds a value that is not finite, the dtype of a weight
            does not hold its sum with the adapter, an adapted weight is another module's too, or shares memory with one
            (a tied embedding; trained token rows are merged for all of them), or there is no room for the plain
            weights.
    """
    logger.info("%s", merge_and_report(model, into=into, original=original, probe=probe))
    return model


@in_turn
@torch.no_grad()
def merge_and_report(
    model: nn.Module,
    *,
    into: MergeInto = "auto",
    original: nn.Module | None = None,
    probe: Any = None,
) -> MergeReport:
    """`merge_adapter`, returning the report instead of logging it."""
    layers = dict(adapted_layers(model))
    quantized = _check_merge(model, layers, into, original)
    way: MergeInto = "dequantized" if into == "auto" else into
    dtype = _activation_dtype(model)
    starts = {name: float_weight(original, name) for name in quantized} if original is not None else {}
    refuse_sums_beyond(layers, starts, None if way == "requantized" else dtype)
    becomes_plain = bool(quantized) and way != "requantized"
    if becomes_plain:
        check_room(_plain_sizes(model), dtype)
    for _, layer in reversed(list(adapter_layers(model))):
        if layer.merged:
            layer.unmerge()
    before = probe_outputs(model, probe)
    rounding = None if before is None or way != "dequantized" else _rounding(model, probe, before, dtype)
    errors = {name: _merge_layer(layer, name, way, original, dtype) for name, layer in layers.items()}
    errors |= {name: _merge_rows(layer) for name, layer in token_layers(model)}
    take_out(model)
    if becomes_plain:
        _replace_quantized(model, original, dtype)
        _forget_quantization(model)
    after = probe_outputs(model, probe)
    if rounding is not None and before is not None and after is not None:
        _warn_of_change(rounding, before, after)
    logit_error = None if before is None or after is None else relative_error(after, before)
    return MergeReport.of(errors, way if quantized else "dense", logit_error)


def _rounding(model: nn.Module, probe: Any, before: Tensor, dtype: torch.dtype) -> Rounding:
    def call() -> Tensor:
        outputs = probe_outputs(model, probe)
        assert outputs is not None
        return outputs

    return measured_rounding(model, [call], [before], dtype)


def _warn_of_change(rounding: Rounding, before: Tensor, after: Tensor) -> None:
    count = rounding.count(row_differences(after, before).flatten())
    if not count <= rounding.limit:
        logger.warning(
            "The merged model does not compute what the adapted one did: its outputs on the probe differ by %.1e times "
            "what one rounding to %s does to them, and at most %g are to be expected. Does a hook or code of your own "
            "change what its layers compute?",
            count,
            str(rounding.dtype).removeprefix("torch."),
            rounding.limit,
        )


def _check_merge(model: nn.Module, layers: dict[str, PeraLinear], into: str, original: nn.Module | None) -> list[str]:
    """Raise if the merge cannot be done; returns the names of the adapted layers with a quantised base."""
    if not layers:
        raise InjectionError(
            "There is no adapter to merge.",
            got="a model without adapters",
            expected="a model with adapters",
            fix="load_adapter(model, folder) first",
        )
    quantized: dict[str, nn.Module] = {name: layer for name, layer in layers.items() if layer.quantization is not None}
    if into not in ("auto", *WAYS) or (into == "original") != (original is not None):
        raise ConfigError(
            "The options of the merge do not go together.",
            got=f"into={into!r}, original={type(original).__name__}",
            expected="into: auto, dequantized, requantized; or original together with the floating model",
            fix="leave both out to keep what the trained model computes",
        )
    if original is not None:
        check_float_model(quantized | _unadapted(model), original)
    _refuse_tied(model, layers)
    for name, layer in layers.items():
        expect_base(layer.base_layer)
        refuse_more(layer.base_layer, layer, name)
        refuse_infinite(layer.adapter())
    for _, rows in token_layers(model):
        rows.check_merge()
    return list(quantized)


def _merge_layer(layer: PeraLinear, name: str, way: MergeInto, original: nn.Module | None, dtype: torch.dtype) -> Norms:
    """Merge one layer."""
    base, below = expect_base(layer.base_layer), layer.base_layer
    exact = layer.merged_weight()
    if layer.quantization is None or way == "requantized":
        overwrite(below, exact)
    else:
        start = None if original is None else float_weight(original, name)
        weight = exact if start is None else layer.merged_weight(start)
        layer.base_layer = base.plain(below, weight, dtype)
    merged = expect_base(layer.base_layer).weight(layer.base_layer).to(exact.dtype)
    return rounding_norms(merged, exact)


def _merge_rows(layer: TokenRowsLayer) -> Norms:
    """Merge trained rows."""
    exact = layer.merged_rows()
    layer.merge()
    merged = layer.weight[layer.token_rows.tokens].to(exact.dtype)
    return rounding_norms(merged, exact)


def _replace_quantized(model: nn.Module, original: nn.Module | None, dtype: torch.dtype) -> None:
    """Put plain layers in the place of quantised ones that had no adapter."""
    made: dict[int, nn.Module] = {}
    for name, layer in _unadapted(model).items():
        if id(layer) not in made:
            base = expect_base(layer)
            weight = base.weight(layer) if original is None else float_weight(original, name)
            made[id(layer)] = base.plain(layer, weight, dtype)
            carry_hooks(layer, made[id(layer)])
    replace_modules(model, made)


def _unadapted(model: nn.Module) -> dict[str, nn.Module]:
    """Quantised layers without an adapter, by their clean names."""
    below = {id(layer.base_layer) for _, layer in adapted_layers(model)}
    found = {}
    for name, layer in model.named_modules():
        base = base_of(layer)
        if id(layer) not in below and base is not None and base.quantization(layer) is not None:
            found[clean_name(name)] = layer
    return found


def _plain_sizes(model: nn.Module) -> dict[torch.device, int]:
    """Weights to come on each device: of all quantised layers."""
    sizes: Counter[torch.device] = Counter()
    for layer in model.modules():
        base = base_of(layer)
        if base is not None and base.quantization(layer) is not None:
            in_features, out_features = base.features(layer)
            sizes[next(layer.parameters()).device] += in_features * out_features
    return dict(sizes)


def _activation_dtype(model: nn.Module) -> torch.dtype:
    """What plain layers have to be to compute on what reaches them: the dtype of most norms, biases and other tensors.

    Tensors are counted, not their entries: a large embedding may be stored narrower than the model computes.
    """
    layers = [layer for _, layer in adapted_layers(model)]
    # A layer that stands in for a quantised one has that one's dtype, which says nothing.
    left_out = {id(layer.base_layer) for layer in layers if layer.quantization is not None} | set(map(id, layers))
    found: Counter[torch.dtype] = Counter()
    for module in model.modules():
        base = base_of(module)
        if id(module) not in left_out and (base is None or base.quantization(module) is None):
            found.update(value.dtype for value in module.parameters(recurse=False) if value.is_floating_point())
    return found.most_common(1)[0][0] if found else torch.get_default_dtype()


def _forget_quantization(model: nn.Module) -> None:
    """Take the marks of a quantised model off transformers models: saved and loaded again, they would not fit."""
    for module in model.modules():
        quantizer: Any = getattr(module, "hf_quantizer", None)
        if quantizer is not None:
            quantizer.remove_quantization_config(module)
            # How packed weights of a quantised checkpoint were read: save_pretrained would undo that.
            module._weight_conversions = None  # type: ignore[assignment]
            for mark in ("is_loaded_in_4bit", "is_loaded_in_8bit"):
                if hasattr(module, mark):
                    setattr(module, mark, False)


def _refuse_tied(model: nn.Module, layers: dict[str, PeraLinear]) -> None:
    memory = SharedMemory(model)
    merged: dict[str, tuple[Tensor, tuple[nn.Module, ...]]] = {
        name: (stored_weight(layer), (layer.base_layer,)) for name, layer in layers.items()
    }
    # Layers that share trained rows share their weight, and are merged together.
    merged |= {
        name: (stored_weight(rows), tuple(one.base_layer for one in rows.token_rows.layers))
        for name, rows in token_layers(model)
    }
    for name, (weight, together) in merged.items():
        owners = memory.owners(weight, besides=together)
        if owners:
            raise InjectionError(
                "An adapted weight is tied to another module, which a merge would change too.",
                got=f"the weight of {name!r} also belongs to {', '.join(owners)}",
                expected="weights of their own in adapted layers",
                fix="leave it out of the adapter (exclude_modules), or untie the weights: for one of the two modules "
                "module.weight = torch.nn.Parameter(module.weight.detach().clone()), and tie_word_embeddings=False",
            )
