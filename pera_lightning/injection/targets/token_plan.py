"""From `trainable_tokens` and a model to the layers whose rows are trained, before anything is changed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from pera_lightning.base_layers import base_of, beyond_multiplying, is_linear_like
from pera_lightning.config import PeraConfig
from pera_lightning.errors import ConfigError, TargetError
from pera_lightning.injection.targets.names import has_suffix, listed, original_names, within_any
from pera_lightning.injection.targets.output_head import outermost_pretrained
from pera_lightning.layers import TokenRows, TokenRowsEmbedding, TokenRowsLayer, TokenRowsLinear
from pera_lightning.layers.call_hooks import hook_reads_weight


@dataclass(frozen=True)
class TokenPlan:
    """The trained rows of one weight.

    Attributes:
        ids: The tokens, in rising order.
        tied: Names of the other modules that share the weight.
    """

    ids: tuple[int, ...]
    tied: tuple[str, ...] = ()


def plan_tokens(
    model: nn.Module, modules: Mapping[str, nn.Module], config: PeraConfig, taken: Collection[str]
) -> dict[str, TokenPlan]:
    """Name of the first module that holds a weight -> which of its rows are trained.

    Args:
        model: The model.
        modules: Its modules by clean names.
        config: The options; `trainable_tokens` is resolved.
        taken: Names of the layers that are adapted, and of the modules that are trained whole with all they hold.

    Raises:
        ConfigError: A weight is named twice, with other ids.
        TargetError: A name matches nothing that has rows of tokens, an id is out of range, or a layer is taken.
    """
    tokens = config.trainable_tokens
    if tokens is None:
        return {}
    if not isinstance(tokens, Mapping):
        tokens = {_input_embedding(model, modules): tokens}
    plans: dict[str, TokenPlan] = {}
    for suffix, ids in tokens.items():
        for name in _matching(suffix, modules):
            first, *tied = _sharing(name, modules)
            plan = TokenPlan(tuple(ids), tuple(tied))
            if plans.setdefault(first, plan) != plan:
                raise ConfigError(
                    "trainable_tokens names one weight twice, with other ids.",
                    got=f"{suffix!r}, whose weight is that of {first!r}",
                    expected="one list of ids for modules that share a weight",
                    fix="name one of them; the others change with it",
                )
    for first, plan in plans.items():
        check_plan(first, plan, modules)
        _refuse_taken((first, *plan.tied), taken)
    return plans


def check_plan(name: str, plan: TokenPlan, modules: Mapping[str, nn.Module]) -> None:
    """Raise TargetError unless the model has what the plan takes: kinds, rows and ties."""
    sharing = _sharing(name, modules)
    if set(sharing) != {name, *plan.tied}:
        raise TargetError(
            "Other modules share the weight whose rows are trained.",
            got=f"{', '.join(sharing)} share one weight",
            expected=f"{', '.join([name, *plan.tied])}, which did when the adapter was made",
            fix="load the model with the same tie_word_embeddings",
        )
    wrong = next((other for other, kind in _kinds(sharing, modules).items() if kind is None), None)
    if wrong is not None:
        raise TargetError(
            "No token rows can be trained in this module.",
            got=f"{wrong!r} of kind {type(modules[wrong]).__name__}",
            expected="a plain torch.nn.Embedding or floating torch.nn.Linear; none that scales its rows, no max_norm, "
            "no forward of its own, no hook that reads the weight",
            fix="train it whole with modules_to_save",
        )
    count = cast("Tensor", modules[name].weight).shape[0]
    if plan.ids[-1] >= count:
        raise TargetError(
            "A trained token is not in the table.",
            got=f"id {plan.ids[-1]}, and {name!r} has {count} rows",
            expected=f"ids from 0 to {count - 1}",
            fix="model.resize_token_embeddings(len(tokenizer)) before the adapter is injected",
        )


def token_row_layers(plans: Mapping[str, TokenPlan], modules: Mapping[str, nn.Module]) -> dict[int, TokenRowsLayer]:
    """The layers to put in place, by the id of what they wrap."""
    made: dict[int, TokenRowsLayer] = {}
    for name, plan in plans.items():
        rows = TokenRows(plan.ids, cast("Tensor", modules[name].weight))
        for other, kind in _kinds((name, *plan.tied), modules).items():
            assert kind is not None, "check_plan comes first"
            made[id(modules[other])] = kind(modules[other], rows)
    return made


def present_plans(model: nn.Module) -> dict[str, TokenPlan]:
    """The plans that make the token rows of an adapted model."""
    named: dict[int, list[tuple[str, TokenRowsLayer]]] = {}
    for name, layer in original_names(model):
        if isinstance(layer, TokenRowsLayer):
            named.setdefault(id(layer.token_rows), []).append((name, layer))
    return {
        layers[0][0]: TokenPlan(layers[0][1].ids, tuple(name for name, _ in layers[1:])) for layers in named.values()
    }


def _input_embedding(model: nn.Module, modules: Mapping[str, nn.Module]) -> str:
    """Name of the one embedding that a plain list of ids can mean."""
    found: set[int] = set()
    for part in outermost_pretrained(model).values():
        try:
            found.add(id(part.get_input_embeddings()))
        except (NotImplementedError, AttributeError):  # models of several kinds of input
            continue
    tables = _tables(modules)
    names = [name for name in tables if id(modules[name]) in found] or tables
    weights = {id(modules[name].weight) for name in names}
    if len(weights) != 1:
        raise TargetError(
            "A list of trainable tokens means the model's input embedding.",
            got=f"a model with {len(weights)} of them",
            expected="one input embedding",
            fix=f"name it: trainable_tokens={{name: ids}}; embeddings: {', '.join(tables) or 'none'}",
        )
    return names[0]


def _matching(suffix: str, modules: Mapping[str, nn.Module]) -> list[str]:
    named = [name for name in modules if has_suffix(name, suffix)]
    found = [name for name in named if isinstance(modules[name], nn.Embedding) or is_linear_like(modules[name])]
    if not found:
        kinds = f", a {type(modules[named[0]]).__name__}" if named else ""
        raise TargetError(
            "trainable_tokens names no embedding.",
            got=f"{suffix!r}{kinds}",
            expected="name suffix of an embedding or of the output head",
            fix=f"embeddings of this model: {listed(_tables(modules))}",
        )
    return found


def _tables(modules: Mapping[str, nn.Module]) -> list[str]:
    return [name for name, module in modules.items() if isinstance(module, nn.Embedding)]


def _sharing(name: str, modules: Mapping[str, nn.Module]) -> list[str]:
    """Names of all modules that hold the weight of this one, in the model's order."""
    weight = modules[name]._parameters.get("weight")
    if weight is None:
        return [name]
    # A module behind wrappers has one clean name.
    return [other for other, part in modules.items() if any(value is weight for value in part._parameters.values())]


def _kinds(sharing: Iterable[str], modules: Mapping[str, nn.Module]) -> dict[str, type[TokenRowsLayer] | None]:
    """Name of each module of a shared weight -> what wraps it; None if its rows are not plainly those of its weight."""
    kinds = {name: _kind(modules[name]) for name in sharing}
    if TokenRowsEmbedding in kinds.values():
        # transformers before 5.6 gives a tied head another weight on a resize, and leaves its out_features behind.
        kinds |= {name: TokenRowsLinear for name in kinds if _is_resized_head(modules[name])}
    return kinds


def _is_resized_head(module: nn.Module) -> bool:
    return type(module) is nn.Linear and module.out_features != module.weight.shape[0]


def _kind(module: nn.Module) -> type[TokenRowsLayer] | None:
    base = base_of(module)
    if beyond_multiplying(module) is not None or hook_reads_weight(module):
        return None
    if base is None:
        return TokenRowsEmbedding if getattr(module, "ROWS_AS_STORED", False) else None
    if not base.linear:
        return TokenRowsEmbedding
    # Conv1D stores its weight the other way round; a row is a token's only where there is one output per token.
    return TokenRowsLinear if isinstance(module, nn.Linear) and base.quantization(module) is None else None


def _refuse_taken(names: Sequence[str], taken: Collection[str]) -> None:
    both = [name for name in names if within_any(name, taken)]
    if both:
        raise TargetError(
            "A weight is to be adapted or trained whole, and some of its rows besides.",
            got=f"{both[0]!r}; the weight whose rows are to be trained is that of {', '.join(names)}",
            expected="one way to train each weight",
            fix="leave it out of trainable_tokens, or out of target_modules (exclude_modules) and modules_to_save",
        )
