"""Whether a merged model, loaded by plain transformers, computes what the adapted model did."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pera_lightning.base_layers import Quantization
from pera_lightning.checkpoint import Manifest, load_adapter
from pera_lightning.errors import ConfigError
from pera_lightning.export.certificate import Certificate, Reference
from pera_lightning.export.probe import token_probe
from pera_lightning.loading.adapter_base import is_causal_lm, load_base, model_class
from pera_lightning.loading.pretrained import PretrainedSource
from pera_lightning.loading.pretrained_tokenizer import load_tokenizer
from pera_lightning.loading.tokenizer_trial import while_tokenising
from pera_lightning.storage.remote import Place
from pera_lightning.visible_text import visible_logger

logger = visible_logger(__name__)

PROMPTS = (
    "The capital of France is",
    "Wake me at half past six tomorrow, and tell me what the weather will be like in Lisbon.",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "Q: A train leaves at 9:40 and arrives at 13:05. How long does the journey take?\nA:",
    "Die Katze sitzt auf der Matte, und der Hund",
)
"""What models are compared on by default, beside random tokens."""
TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken")


def prompt_reference(
    model: nn.Module, source: PretrainedSource, prompts: Sequence[str] | None, rounded_to: torch.dtype | None = None
) -> Reference | None:
    """What an adapted model computes for some prompts.

    Args:
        model: A model that takes tokens.
        source: Where its tokenizer comes from.
        prompts: Texts; None is `PROMPTS`, as far as there is a tokenizer for them, and random tokens.
        rounded_to: Dtype of the merged weights.

    Returns:
        None if there is nothing to call the model with.

    Raises:
        ConfigError: Prompts are given, and there is no tokenizer, or they hold no token.
    """
    calls = _calls(model, source, prompts)
    if not calls and prompts is None:
        return None
    return Reference.of(model, calls, rounded_to)


def _calls(model: nn.Module, source: PretrainedSource, prompts: Sequence[str] | None) -> list[dict[str, Any]]:
    try:
        check_tokenizer(source)
        tokenizer = load_tokenizer(source)
    except ConfigError:
        if prompts is not None:
            raise
        rows = []
    else:
        with while_tokenising("A prompt"):
            rows = [tokenizer(text)["input_ids"] for text in (PROMPTS if prompts is None else prompts)]
    device = next(model.parameters()).device
    calls: list[dict[str, Any]] = [{"input_ids": torch.tensor([row], device=device)} for row in rows if row]
    tokens = token_probe(model) if prompts is None else None
    return calls if tokens is None else [*calls, tokens]


def check_tokenizer(source: PretrainedSource) -> None:
    """Raise ConfigError for a folder without a tokenizer, for which transformers may make up an empty one."""
    folder = Path(source.pretrained)
    files = [file for pattern in TOKENIZER_FILES for file in folder.glob(pattern)]
    if folder.is_dir() and source.gguf_file is None and not files:
        raise ConfigError(
            "There is no tokenizer to read the prompts with.",
            got=f"{folder} without one",
            expected="a tokenizer beside the model",
            fix="leave the prompts out, or save the tokenizer there: tokenizer.save_pretrained(folder)",
        )


def adapted_reference(
    adapter: Place,
    manifest: Manifest,
    source: PretrainedSource,
    *,
    dtype: str,
    quantization: Quantization | None,
    prompts: Sequence[str] | None,
) -> Reference | None:
    """What the trained model computes; it is loaded for this alone.

    Args:
        adapter: Folder of the adapter.
        manifest: Its content.
        source: The base.
        dtype: Of the base's weights.
        quantization: How the base was quantised in training.
        prompts: See `prompt_reference`.

    Returns:
        None if the adapter is named relative to a module that transformers does not know, or nothing to call it with.
    """
    if model_class(manifest) is None:
        logger.warning(
            "The merged model is not compared with the adapted one: %s is no class of transformers, so that only its "
            "owner can build it.",
            manifest.architecture,
        )
        return None
    model = load_base(manifest, source, dtype=dtype, quantization=quantization)
    load_adapter(model, adapter)
    return prompt_reference(model, source, prompts)


def certify(folder: Path, manifest: Manifest, reference: Reference) -> Certificate:
    """Load a merged model as anybody would, and compare it.

    Args:
        folder: Of the merged model.
        manifest: Of the adapter that is merged into it.
        reference: What the adapted model computes.
    """
    from transformers import AutoModelForCausalLM

    cls = model_class(manifest)
    loader: Any = AutoModelForCausalLM if cls is None or is_causal_lm(cls) else cls
    model = loader.from_pretrained(folder)
    device = reference.inputs[0]["input_ids"].device
    return reference.compare(model.to(device), f"transformers {version('transformers')}")
