"""Which layers are a model's output head; "all-linear" leaves them alone."""

from __future__ import annotations

from typing import Any

from torch import nn

from pera_lightning.base_layers import is_linear_like
from pera_lightning.injection.copies import exact_copies, mirrored
from pera_lightning.injection.targets.names import block_template, clean_name, within_any


def output_head(model: nn.Module) -> set[str]:
    """Names of the linear layers that make up the output head of `model`, and of what is a copy of a part of it.

    - transformers models (also inside another module): the output embeddings, and every linear layer outside
      the base model, which is where their task heads live.
    - any other model: the linear layer registered last, unless it is the only one or part of a repeated block
      (`layers.0.fc`, `layers.1.fc`). There is no way to know what a free-form `forward` does with a layer;
      registration order is what people write.
    """
    copies, modules = exact_copies(model), dict(model.named_modules())
    head = _heads({name: module for name, module in modules.items() if not within_any(clean_name(name), copies)})
    mirror = mirrored(sorted(map(clean_name, head)), copies, {clean_name(name): part for name, part in modules.items()})
    return head | {name for name in modules if clean_name(name) in mirror}


def _heads(modules: dict[str, nn.Module]) -> set[str]:
    pretrained = _outermost_pretrained(modules)
    linear = [name for name, module in modules.items() if is_linear_like(module)]
    heads = {name for prefix, part in pretrained.items() for name in _head_of_pretrained(prefix, part)}
    if heads:
        return heads
    outside = [name for name in linear if not any(_inside(name, prefix) for prefix in pretrained)]
    if not outside or len(linear) == 1 or _in_repeated_block(outside[-1], outside[:-1]):
        return set()
    return {outside[-1]}


def outermost_pretrained(model: nn.Module) -> dict[str, Any]:
    """The transformers models in `model` that are in no other one, by name."""
    return _outermost_pretrained(dict(model.named_modules()))


def _outermost_pretrained(modules: dict[str, nn.Module]) -> dict[str, Any]:
    found: dict[str, nn.Module] = {}
    for name, module in modules.items():
        # By its methods, so that transformers need not be imported for a plain torch model.
        is_pretrained = hasattr(module, "base_model_prefix") and hasattr(module, "get_output_embeddings")
        if is_pretrained and not any(_inside(name, prefix) for prefix in found):
            found[name] = module
    return found


def _head_of_pretrained(prefix: str, model: Any) -> set[str]:
    embeddings = model.get_output_embeddings()
    body = getattr(model, model.base_model_prefix, model)
    within_body = {id(module) for module in body.modules()}
    return {
        f"{prefix}.{name}" if prefix else name
        for name, module in model.named_modules()
        if is_linear_like(module) and (module is embeddings or id(module) not in within_body)
    }


def _in_repeated_block(name: str, others: list[str]) -> bool:
    return block_template(name) in map(block_template, others)


def _inside(name: str, prefix: str) -> bool:
    return prefix == "" or name == prefix or name.startswith(prefix + ".")
