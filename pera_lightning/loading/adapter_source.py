"""Which base model an adapter belongs to, and how that was stored."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from pera_lightning.base_layers import QUANTIZATIONS, Quantization
from pera_lightning.checkpoint import Manifest
from pera_lightning.checkpoint.manifest.manifest import FLOATING
from pera_lightning.errors import ConfigError
from pera_lightning.loading.pretrained import PretrainedSource
from pera_lightning.storage.bounded_json import read_json
from pera_lightning.storage.recognition.adapter_kind import CONFIG_FILE
from pera_lightning.storage.remote import Place, local_name


def adapter_source(
    adapter: Place, manifest: Manifest, base: str | None = None, gguf_file: str | None = None
) -> PretrainedSource:
    """Where the base model comes from: what the user says, else what the adapter names.

    Args:
        adapter: Folder of the adapter.
        manifest: Its content.
        base: Hub id or folder.
        gguf_file: Name of a GGUF file in it.

    Raises:
        ConfigError: Neither the user nor the adapter names a base.
    """
    if base is None:
        recorded = manifest.base_model
        if recorded is None:
            raise ConfigError(
                "The adapter does not say which base model it belongs to.",
                got=f"no base_model_name_or_path in {adapter / CONFIG_FILE}",
                expected="the base model it was trained on",
                fix="name it with --base (and --gguf_file); of a module of your own: load_adapter(model, folder), "
                "merge_adapter(model) and torch.save(model.state_dict(), path) in Python",
            )
        base = recorded
    base = local_name(base, "the base model")
    # A GGUF base is recorded as the path of its file.
    if gguf_file is None and base.endswith(".gguf"):
        base, gguf_file = str(Path(base).parent), Path(base).name
    return PretrainedSource(base, gguf_file)


def adapter_quantization(manifest: Manifest, source: PretrainedSource) -> Quantization | None:
    """How to quantise the base on loading so that the adapter fits.

    Args:
        manifest: Of the adapter.
        source: The base; a folder whose weights are quantised already stays as it is.

    Raises:
        ConfigError: In a way in which `load_causal_lm` cannot.
    """
    kinds = set(manifest.quantization) - {FLOATING}
    if not kinds or _is_quantized(source):
        return None
    if len(kinds) > 1 or not kinds <= set(QUANTIZATIONS):
        raise ConfigError(
            "The adapter's base is quantised in a way that this command cannot load.",
            got=", ".join(manifest.quantization),
            expected=f"one of {', '.join(QUANTIZATIONS)}",
            fix="load the base in Python as in training, then load_adapter(model, folder)",
        )
    return cast("Quantization", kinds.pop())


def _is_quantized(source: PretrainedSource) -> bool:
    try:
        config = read_json(Path(source.pretrained) / "config.json")
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "quantization_config" in config
