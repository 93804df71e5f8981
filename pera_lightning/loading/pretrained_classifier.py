"""Loading a pretrained model with a head that classifies whole texts."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pera_lightning.checkpoint.manifest.class_names import name_classes
from pera_lightning.errors import ConfigError
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
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """Load a sequence classifier, in eval mode as transformers returns it.

    Args:
        source: Where the model comes from.
        num_labels: Outputs of the head. A stored head of another size is replaced by a fresh one.
        names: Of the classes in the order of their numbers, for the model's config; None leaves them as they are.
        dtype: Name of a floating torch dtype; "native": what `native_dtype` says; or "auto": the one the weights were
            saved in.
        attn_implementation: "eager", "sdpa", ...; None leaves the choice to transformers.

    Returns:
        The model, and the names of what is to be trained whole: its head, and a pooler without stored weights.

    Raises:
        ConfigError: The source cannot be loaded as a sequence classifier, or weights below its head are missing.
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
    body = [name for name, part in model.named_children() if part is model.base_model]
    _refuse_incomplete(source, model, [key for key in fresh if key.partition(".")[0] in body])
    return model, (*_head(model, body), *_poolers(fresh, body))


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
    missing = sorted(key for key in fresh if ".pooler." not in key)
    if missing:
        # transformers fills these with random numbers and only warns; frozen under an adapter they stay random.
        raise ConfigError(
            f"{source.name} lacks {len(missing)} weights of a {type(model).__name__} below its head.",
            got=f"no {', '.join(missing[:3])}" + (", ..." if len(missing) > 3 else "") + ", or of other shapes",
            expected="a checkpoint with all weights of the body",
            fix="name a complete model; its kind is what model_type in its config.json says",
        )
