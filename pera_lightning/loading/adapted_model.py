"""From an adapter folder to the language model it was trained on, with the adapter in it."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING

from pera_lightning.checkpoint import Manifest, load_adapter
from pera_lightning.checkpoint.manifest.manifest import read_manifest
from pera_lightning.errors import ConfigError
from pera_lightning.injection.untrained import is_idle
from pera_lightning.loading.adapter_source import adapter_quantization, adapter_source
from pera_lightning.loading.pretrained import load_causal_lm
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
        ConfigError: It is no adapter of a language model, or the base is not known, cannot be loaded or is quantised in
            a way that this cannot load.
    """
    folder = place(adapter)
    manifest = read_manifest(folder / CONFIG_FILE)
    _refuse_other_tasks(manifest)
    source = adapter_source(folder, manifest, base, gguf_file)
    tokenizer = load_tokenizer(source)
    model = load_causal_lm(source, dtype=dtype, quantization=adapter_quantization(manifest, source))
    if not without_adapter:
        load_adapter(model, folder)
        if is_idle(model):
            warnings.warn(
                f"The adapter in {visible(adapter)} changes nothing: its factors are those of before training, and the "
                "answers the base's. Take the adapter that a fit has written.",
                stacklevel=2,
            )
    return model, tokenizer


def _refuse_other_tasks(manifest: Manifest) -> None:
    architecture = manifest.architecture or ""
    if re.search(r"For[A-Z]", architecture) and not architecture.endswith(("ForCausalLM", "ForConditionalGeneration")):
        raise ConfigError(
            "The adapter belongs to another kind of model than this command loads.",
            got=f"an adapter of a {architecture}",
            expected="one of a language model (...ForCausalLM)",
            fix="use it in Python: load_adapter(model, folder) into the model of its training; `export --check false` "
            "needs no model",
        )
