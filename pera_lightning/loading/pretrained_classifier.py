"""Loading a pretrained model with a head that classifies whole texts."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pera_lightning.checkpoint.manifest.class_names import REGRESSION, name_classes
from pera_lightning.errors import ConfigError
from pera_lightning.injection.targets.names import within_any
from pera_lightning.loading.base_config import check_base_size
from pera_lightning.loading.pretrained import PretrainedSource, load_config, native_dtype, while_loading

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_classifier(
    source: PretrainedSource,
    *,
    num_labels: int,
    names: Sequence[int | str] | None = None,
    dtype: str = "auto",
    attn_implementation: str | None = None,
    trained: Collection[str] | None = None,
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """Load a sequence classifier, in eval mode as transformers returns it.

    Args:
        source: Where the model comes from.
        num_labels: Outputs of the head. A stored head of another size is replaced by a fresh one.
        names: Of the classes in the order of their numbers, for the model's config; None leaves them as they are.
        dtype: Name of a floating torch dtype; "native": what `native_dtype` says; or "auto": the one the weights were
            saved in.
        attn_implementation: "eager", "sdpa", ...; None leaves the choice to transformers.
        trained: Names of the modules that an adapter brings: everything else has to be stored. None for a model that
            is to be trained.

    Returns:
        The model, and the names of what is to be trained whole: its head, and a pooler without stored weights.

    Raises:
        ConfigError: The source cannot be loaded as a sequence classifier, weights below its head are missing, or of its
            head, where something else than `trained` has to be stored.
    """
    from transformers import AutoModelForSequenceClassification

    source.check()
    options = source.options()
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    with while_loading("sequence classifier", source):
        check_base_size(lambda: _build(source, num_labels), source.weights())
        # Any: with output_loading_info it returns a pair, which its annotation does not know.
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(
            source.pretrained,
            num_labels=num_labels,
            dtype=native_dtype() if dtype == "native" else dtype,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **options,
        )
    model, loading = loaded
    fresh = {*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])}
    if names:
        name_classes(model, names)
    if num_labels == 1:
        # Or a pipeline would make a probability of a score.
        model.config.problem_type = REGRESSION
    body = body_of(model)
    _refuse_incomplete(source, model, [key for key in fresh if not is_head(key, body)])
    if trained is not None:
        refuse_untrained_head(source.name, [key for key in fresh if not within_any(key, trained)])
    return model, (*_head(model, body), *_poolers(fresh, body))


def body_of(model: PreTrainedModel) -> tuple[str, ...]:
    """Names of the modules of a model that are its pretrained body: one, or none of a bare body."""
    return tuple(name for name, part in model.named_children() if part is model.base_model)


def is_head(key: str, body: Collection[str]) -> bool:
    """Whether a parameter is one that the pretraining may have had no use for: beside the body, or of its pooler."""
    return key.partition(".")[0] not in body or ".pooler." in key


def refuse_untrained_head(base: str, missing: Collection[str]) -> None:
    """Raise ConfigError if neither a base nor the adapter on it holds some parameters of a head.

    Args:
        base: Name of the base.
        missing: The parameters.
    """
    if missing:
        keys = sorted(missing)
        modules = sorted({key.rpartition(".")[0] for key in keys})
        raise ConfigError(
            "Neither the base's files nor the adapter hold the whole head of the classifier.",
            got=f"{base} without {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''} (or of other shapes), which "
            "the adapter does not bring either",
            expected="a head that is stored or was trained; transformers would fill it with random numbers",
            fix="name the base with the head that the adapter was trained under (base=..., --base); or train it too: "
            f"modules_to_save={modules}, as PeraSequenceClassifier does by itself",
        )


def _build(source: PretrainedSource, num_labels: int) -> PreTrainedModel:
    """The model on the meta device."""
    from transformers import AutoModelForSequenceClassification

    config = load_config(source)
    config.num_labels = num_labels
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(config, trust_remote_code=source.trust_remote_code)


def _head(model: nn.Module, body: Collection[str]) -> list[str]:
    """The modules beside the body."""
    return [name for name, part in model.named_children() if name not in body and any(True for _ in part.parameters())]


def _poolers(fresh: Collection[str], body: Collection[str]) -> list[str]:
    """Poolers within the body that the pretraining had no use for, so that they came without weights."""
    return sorted({_pooler_of(key) for key in fresh if key.partition(".")[0] in body})


def _pooler_of(key: str) -> str:
    head, pooler, _ = key.partition(".pooler.")
    return head + pooler.rstrip(".")


def _refuse_incomplete(source: PretrainedSource, model: nn.Module, fresh: list[str]) -> None:
    missing = sorted(fresh)
    if missing:
        # transformers fills these with random numbers and only warns; frozen under an adapter they stay random.
        raise ConfigError(
            f"{source.name} lacks {len(missing)} weights of a {type(model).__name__} below its head.",
            got=f"no {', '.join(missing[:3])}" + (", ..." if len(missing) > 3 else "") + ", or of other shapes",
            expected="a checkpoint with all weights of the body",
            fix="name a complete model; its kind is what model_type in its config.json says",
        )
