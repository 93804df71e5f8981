"""From an adapter folder to the model it was trained on, with the adapter in it."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING

from pera_lightning.checkpoint import Manifest, load_adapter
from pera_lightning.checkpoint.manifest.manifest import read_manifest
from pera_lightning.errors import ConfigError
from pera_lightning.injection.untrained import is_idle
from pera_lightning.loading.adapter_base import is_classifier, load_base, model_class
from pera_lightning.loading.adapter_source import adapter_quantization, adapter_source
from pera_lightning.loading.pretrained_tokenizer import load_tokenizer
from pera_lightning.storage.recognition.adapter_kind import CONFIG_FILE
from pera_lightning.storage.remote import Place, place
from pera_lightning.visible_text import visible

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_adapted_model(
    adapter: str | Place,
    *,
    base: str | None = None,
    gguf_file: str | None = None,
    dtype: str = "auto",
    without_adapter: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the base of an adapter, quantised as in its training, and the adapter into it.

    An adapter of a classifier gets `AutoModelForSequenceClassification` with its head, and with the number and names of
    its classes in the config.

    Args:
        adapter: Folder of the adapter, here or at a URL.
        base: Hub id or folder of the base model; by default the one that the adapter names.
        gguf_file: Name of a GGUF file in `base`.
        dtype: Dtype of the base's weights, see `load_causal_lm`.
        without_adapter: Load the base alone.

    Returns:
        The model in eval mode, and its tokenizer.

    Raises:
        AdapterFileError: The folder is missing or damaged, or does not fit the base.
        ConfigError: It is no adapter of a language model or classifier, or the base is not known, cannot be loaded, is
            quantised in a way that this cannot load, or, alone, lacks the head.
    """
    folder = place(adapter)
    manifest = read_manifest(folder / CONFIG_FILE)
    classifies = is_classifier(model_class(manifest))
    if not classifies:
        _refuse_other_tasks(
            manifest, "a language model (...ForCausalLM) or a classifier (...ForSequenceClassification)"
        )
    source = adapter_source(folder, manifest, base, gguf_file)
    tokenizer = load_tokenizer(source)
    quantization = adapter_quantization(manifest, source)
    model = load_base(manifest, source, dtype=dtype, quantization=quantization, alone=without_adapter)
    if classifies:
        # As PeraSequenceClassifier does: decoders find the last token, whose state is classified, by it.
        model.config.pad_token_id = tokenizer.pad_token_id
    if not without_adapter:
        load_adapter(model, folder)
        if is_idle(model):
            warnings.warn(
                f"The adapter in {visible(adapter)} changes nothing: its factors are those of before training, and the "
                "answers the base's. Take the adapter that a fit has written.",
                stacklevel=2,
            )
    return model, tokenizer


def check_language_model(adapter: str | Place) -> None:
    """Find out whether an adapter is one of a language model, which can answer.

    Args:
        adapter: Folder of the adapter, here or at a URL.

    Raises:
        AdapterFileError: The folder is missing or damaged.
        ConfigError: It is one of another model.
    """
    _refuse_other_tasks(read_manifest(place(adapter) / CONFIG_FILE), "a language model (...ForCausalLM)")


def _refuse_other_tasks(manifest: Manifest, expected: str) -> None:
    architecture = manifest.architecture or ""
    if re.search(r"For[A-Z]", architecture) and not architecture.endswith(("ForCausalLM", "ForConditionalGeneration")):
        raise ConfigError(
            "The adapter belongs to another kind of model than this loads.",
            got=f"an adapter of a {architecture}",
            expected=f"one of {expected}",
            fix="`predict` and `test` use classifiers, `export --to merged` writes them for transformers' pipelines; "
            "in Python load_adapter(model, folder) into the model of its training",
        )
