"""How the base of an adapter is loaded, as Python for cards and for the last lines of commands."""

from __future__ import annotations

from pathlib import PurePath
from typing import NamedTuple

from pera_lightning.base_layers import QUANTIZATIONS
from pera_lightning.checkpoint.manifest.manifest import FLOATING, Manifest

_CLASSES = {
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "Model": "AutoModel",
}
"""Ending of an architecture -> what loads it by the name of a base."""


class BaseCode(NamedTuple):
    """Python that makes the base model.

    Attributes:
        imports: Lines.
        call: An expression.
    """

    imports: list[str]
    call: str


def auto_class(architecture: str | None) -> str | None:
    """The class of transformers that loads models of an architecture by their name; None if it is not known."""
    return next((name for ending, name in _CLASSES.items() if (architecture or "").endswith(ending)), None)


def base_code(manifest: Manifest) -> BaseCode | None:
    """What loads the base as in training, quantised as it was there.

    Args:
        manifest: Of the adapter.

    Returns:
        None where only the owner of the model's class can make it.
    """
    found = auto_class(manifest.architecture)
    if found is None:
        return None
    base = manifest.base_model or "BASE"
    arguments = [repr(base)]
    if base.endswith(".gguf"):
        arguments = [repr(str(PurePath(base).parent)), f"gguf_file={PurePath(base).name!r}"]
    if found == "AutoModelForSequenceClassification" and manifest.labels:
        arguments.append(f"num_labels={len(manifest.labels)}")
    names, lines = [found], []
    if options := _quantization(manifest):
        names.append("BitsAndBytesConfig")
        arguments.append(f"quantization_config=BitsAndBytesConfig({options})")
        lines = ["import torch"] if "torch." in options else []
    lines.append(f"from transformers import {', '.join(names)}")
    return BaseCode(lines, f"{found}.from_pretrained({', '.join(arguments)})")


def _quantization(manifest: Manifest) -> str:
    """Arguments of `BitsAndBytesConfig`; empty for a base in floating point, or one that transformers cannot load."""
    kinds = set(manifest.quantization) - {FLOATING}
    stored = QUANTIZATIONS.get(next(iter(kinds), "")) if len(kinds) == 1 else None  # type: ignore[call-overload]
    return "" if stored is None else ", ".join(f"{name}={value!r}" for name, value in stored.options().items())
