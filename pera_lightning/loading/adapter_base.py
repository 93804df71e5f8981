"""The base model of an adapter, of the class that the adapter was trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pera_lightning.base_layers import Quantization
from pera_lightning.checkpoint import Manifest
from pera_lightning.loading.pretrained import PretrainedSource, load_causal_lm, load_config, while_loading
from pera_lightning.loading.pretrained_classifier import load_classifier

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_base(
    manifest: Manifest,
    source: PretrainedSource,
    *,
    dtype: str = "auto",
    quantization: Quantization | None = None,
    alone: bool = False,
) -> PreTrainedModel:
    """Load the model that an adapter was trained on, in eval mode.

    Args:
        manifest: Of the adapter. What names no class of transformers is taken for a causal language model.
        source: Where the model comes from.
        dtype: Name of a floating torch dtype, "auto" or "native", see `load_causal_lm`.
        quantization: How the linear layers of a language model are stored.
        alone: Whether the adapter, and with it a head that it trained, stays out.

    Raises:
        ConfigError: The source cannot be loaded as such a model, or neither its files nor the adapter hold its head.
    """
    cls = model_class(manifest)
    if cls is None or is_causal_lm(cls):
        return load_causal_lm(source, dtype=dtype, quantization=quantization)
    if is_classifier(cls):
        # Earlier versions did not keep the names of the classes.
        number = len(manifest.labels) or len(load_config(source).id2label or ())
        trained = () if alone else manifest.saved
        return load_classifier(source, num_labels=number, dtype=dtype, trained=trained)[0]
    source.check()
    with while_loading(cls.__name__, source):
        loaded: PreTrainedModel = cls.from_pretrained(source.pretrained, dtype=dtype, **source.options())
    return loaded


def model_class(manifest: Manifest) -> type[PreTrainedModel] | None:
    """The class of transformers that an adapter's names belong to; None if it is none of them."""
    import transformers

    cls = getattr(transformers, manifest.architecture or "", None)
    return cls if isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel) else None


def is_causal_lm(cls: type[PreTrainedModel]) -> bool:
    """Whether `AutoModelForCausalLM` loads models of a class."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return cls.__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


def is_classifier(cls: type[PreTrainedModel] | None) -> bool:
    """Whether `AutoModelForSequenceClassification` loads models of a class."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    return cls is not None and cls.__name__ in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values()
