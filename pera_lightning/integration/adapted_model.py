"""From an adapter folder to the language model it was trained on, with the adapter in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from pera_lightning.bases import QUANTIZATIONS, Quantization
from pera_lightning.checkpoint import Manifest, load_adapter
from pera_lightning.checkpoint.adapter_files import CONFIG_FILE
from pera_lightning.checkpoint.manifest import FLOATING, read_manifest
from pera_lightning.errors import ConfigError
from pera_lightning.integration.pretrained import PretrainedSource, load_causal_lm, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_adapted_model(
    adapter: str | Path,
    *,
    base: str | None = None,
    gguf_file: str | None = None,
    dtype: str = "auto",
    without_adapter: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the base of an adapter, quantised as in its training, and the adapter into it.

    Args:
        adapter: Folder of the adapter.
        base: Hub id or folder of the base model; by default the one that the adapter names.
        gguf_file: Name of a GGUF file in `base`.
        dtype: Dtype of the base's weights, see `load_causal_lm`.
        without_adapter: Load the base alone.

    Returns:
        The model in eval mode, and its tokenizer.

    Raises:
        AdapterFileError: The folder is missing or damaged, or does not fit the base.
        ConfigError: The base is not known, cannot be loaded or is quantised in a way that this cannot load.
    """
    manifest = read_manifest(Path(adapter) / CONFIG_FILE)
    source = source_of(Path(adapter), manifest, base, gguf_file)
    tokenizer = load_tokenizer(source)
    model = load_causal_lm(source, dtype=dtype, quantization=trained_quantization(manifest))
    if not without_adapter:
        load_adapter(model, adapter)
    return model, tokenizer


def trained_quantization(manifest: Manifest) -> Quantization | None:
    """How to quantise the base so that the adapter fits.

    Raises:
        ConfigError: Its layers were quantised in several ways, or in one that models are not loaded in.
    """
    kinds = set(manifest.quantization) - {FLOATING}
    if not kinds:
        return None
    if len(kinds) > 1 or not kinds <= set(QUANTIZATIONS):
        raise ConfigError(
            "The adapter's base is quantised in a way that this command cannot load.",
            got=", ".join(manifest.quantization),
            expected=f"one of {', '.join(QUANTIZATIONS)}",
            fix="load the base in Python as in training, then load_adapter(model, folder)",
        )
    return cast("Quantization", kinds.pop())


def source_of(adapter: Path, manifest: Manifest, base: str | None, gguf_file: str | None) -> PretrainedSource:
    """Where the base model comes from: what the user says, else what the adapter names.

    Raises:
        ConfigError: Neither says it.
    """
    if base is None:
        recorded = manifest.base_model
        if recorded is None:
            raise ConfigError(
                "The adapter does not say which base model it belongs to.",
                got=f"no base_model_name_or_path in {adapter / CONFIG_FILE}",
                expected="the base model it was trained on",
                fix="name it with --base (and --gguf_file)",
            )
        base = recorded
    # A GGUF base is recorded as the path of its file.
    if gguf_file is None and base.endswith(".gguf"):
        base, gguf_file = str(Path(base).parent), Path(base).name
    return PretrainedSource(base, gguf_file)
