"""What an adapter is made of, in plain types: the content of `adapter_config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import nn

from pera_lightning.checkpoint.checksums import Checksums
from pera_lightning.checkpoint.manifest.base_record import base_record
from pera_lightning.checkpoint.manifest.base_sample import base_sample
from pera_lightning.checkpoint.manifest.class_names import class_names
from pera_lightning.checkpoint.manifest.layer_traits import layer_traits
from pera_lightning.checkpoint.manifest.manifest_schema import FORMAT_VERSION, checked_manifest
from pera_lightning.concurrency import reading
from pera_lightning.config import PeraConfig
from pera_lightning.errors import AdapterFileError, InjectionError, one_line, shown
from pera_lightning.form_bounds import is_whole
from pera_lightning.injection import (
    InjectionPlan,
    LayerPlan,
    TokenPlan,
    adapted_layers,
    marked_modules,
    original_names,
    present_plans,
)
from pera_lightning.layers import PeraLinear
from pera_lightning.storage.bounded_json import JsonError, read_json
from pera_lightning.storage.recognition.adapter_kind import PEFT_TYPE
from pera_lightning.storage.recognition.missing_adapter import missing_adapter
from pera_lightning.storage.remote import Place
from pera_lightning.storage.schema import SchemaError
from pera_lightning.version import __version__

FLOATING = "none"
"""The quantisation of a base that is not quantised."""


@dataclass(frozen=True)
class Manifest:
    """Config, layers and origin of an adapter.

    Attributes:
        config: The options the adapter was made with.
        layers: Layer name -> rank and alpha. Loading follows this list, not the patterns of the config, which
            could match other layers in another version of the model's code.
        saved: Names of the modules saved whole and of the trained biases.
        base_model: Name or path of the base model, if known.
        versions: Versions of the libraries that wrote it.
        quantization: How the adapted layers' bases were quantised ("nf4-dq", ...; "none"), each kind once.
        tokens: Module name -> ids of the trained rows of its weight, and what shares the weight.
        base_sample: Some weights of the base, by layer name, to recognise it; earlier versions know no more.
        base_record: More of it, by layer name, see `LayerRecord.encode`.
        traits: Name of a layer or saved module -> what sets it apart from a plain one, for exports (`layer_traits`).
        architecture: Class of the model that the names belong to, e.g. "LlamaForCausalLM".
        labels: Names of a classifier's outputs in their order, "LABEL_0", ... where nobody named them; one of a
            regression, none of other models.
        chat: How conversations became text in training: `system_prompt`, `use_chat_template`, `template`; where rows
            had several system messages, `different_system_prompts` counts them and `most_frequent_system_prompt` is
            that of most rows. Empty where no conversation did, or it is not known.
        checksums: What the folder that it was read from says of itself; not part of `to_dict`.
    """

    config: PeraConfig
    layers: dict[str, LayerPlan]
    saved: tuple[str, ...] = ()
    base_model: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    quantization: tuple[str, ...] = (FLOATING,)
    tokens: dict[str, TokenPlan] = field(default_factory=dict)
    base_sample: dict[str, list[float]] = field(default_factory=dict)
    base_record: dict[str, str] = field(default_factory=dict)
    traits: dict[str, tuple[str, ...]] = field(default_factory=dict)
    architecture: str | None = None
    labels: tuple[str, ...] = ()
    chat: dict[str, Any] = field(default_factory=dict)
    checksums: Checksums | None = field(default=None, compare=False)

    @property
    def plan(self) -> InjectionPlan:
        """The injection that makes a model fit this adapter."""
        return InjectionPlan(self.config, self.layers, self.saved, tokens=self.tokens)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, fit for JSON and for checkpoints loaded with `weights_only=True`."""
        return {
            "peft_type": PEFT_TYPE,
            "format_version": FORMAT_VERSION,
            "base_model_name_or_path": self.base_model,
            "config": self.config.to_dict(),
            "layers": {name: {"rank": plan.rank, "alpha": plan.alpha} for name, plan in self.layers.items()},
            "saved_modules": list(self.saved),
            "token_rows": {
                name: {"ids": list(plan.ids), "tied": list(plan.tied)} for name, plan in self.tokens.items()
            },
            "base_quantization": list(self.quantization),
            "base_sample": self.base_sample,
            "base_record": self.base_record,
            "layer_traits": {name: list(traits) for name, traits in self.traits.items()},
            "architecture": self.architecture,
            "labels": list(self.labels),
            "versions": self.versions,
            **({"chat": self.chat} if self.chat else {}),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Manifest:
        """The manifest whose `to_dict` gave `values`.

        Raises:
            AdapterFileError: It is no PERA adapter, or of a newer format.
        """
        _check_format(values)
        try:
            found = checked_manifest(values)
        except (ValueError, RecursionError) as error:
            raise AdapterFileError(
                "The adapter's config is incomplete or damaged.",
                got=one_line(error, kind=not isinstance(error, SchemaError)),
                expected=getattr(error, "expected", "config, layers and saved_modules as save_adapter writes them"),
                fix="save the adapter again",
            ) from error
        return cls(
            config=found["config"],
            layers={name: LayerPlan(**plan) for name, plan in found["layers"].items()},
            saved=found["saved_modules"],
            base_model=found.get("base_model_name_or_path"),
            versions=found.get("versions", {}),
            # Adapters were written before quantised bases were supported.
            quantization=found.get("base_quantization", (FLOATING,)),
            # Or before rows of tokens were trained.
            tokens={name: TokenPlan(**plan) for name, plan in found.get("token_rows", {}).items()},
            base_sample={name: list(weights) for name, weights in found.get("base_sample", {}).items()},
            base_record=found.get("base_record", {}),
            traits=found.get("layer_traits", {}),
            architecture=found.get("architecture"),
            labels=found.get("labels", ()),
            chat=found.get("chat", {}),
        )


def _check_format(values: object) -> None:
    fields: dict[str, Any] = values if isinstance(values, dict) else {}
    kind = fields.get("peft_type")
    if kind != PEFT_TYPE:
        raise AdapterFileError(
            "This is no PERA adapter.",
            got=f"peft_type {shown(kind)}",
            expected=f"peft_type {PEFT_TYPE!r}",
            fix="begin from it: inject_lora(model, folder), or PeraCallback(init_from=folder) (--pera.init_from)"
            if kind == "LORA"
            else "load other adapters with the library that wrote them",
        )
    written: Any = fields.get("format_version")
    if is_whole(written) and written > FORMAT_VERSION:
        raise AdapterFileError(
            "The adapter's format is newer than this library.",
            got=f"format_version {shown(written)}",
            expected=f"at most {FORMAT_VERSION}",
            fix="upgrade pera-lightning",
        )


def manifest_of(model: nn.Module, base_model: str | None = None, *, chat: Mapping[str, Any] | None = None) -> Manifest:
    """Describe the adapter of a model.

    Args:
        model: The model.
        base_model: Name or path of its base; by default what the model's own config says.
        chat: How conversations become text in its training, if they do.

    Raises:
        InjectionError: The model holds no adapter.
    """
    with reading(model):
        layers = {name: layer for name, layer in original_names(model) if isinstance(layer, PeraLinear)}
        if not layers:
            raise InjectionError(
                "The model holds no adapter.",
                got="a model without PERA layers",
                expected="a model after inject_adapter, load_adapter or PeraCallback.setup",
                fix="inject the adapter first",
            )
        base_model = base_model or base_name(model)
        return Manifest(
            config=next(iter(layers.values())).config,
            layers={name: LayerPlan(layer.rank, layer.alpha) for name, layer in layers.items()},
            saved=tuple(name for name, _ in marked_modules(model)),
            base_model=base_model,
            versions=versions(),
            quantization=quantization_of(model),
            tokens=present_plans(model),
            base_sample=base_sample(model),
            base_record=base_record(model, gguf=(base_model or "").endswith(".gguf")),
            traits=layer_traits(model),
            architecture=type(model).__name__,
            labels=class_names(model),
            chat=dict(chat or {}),
        )


def quantization_of(model: nn.Module) -> tuple[str, ...]:
    """How the bases of a model's adapted layers are quantised, each kind once; "none" for dense ones."""
    return tuple(sorted({layer.quantization or FLOATING for _, layer in adapted_layers(model)}))


def read_manifest(path: Place) -> Manifest:
    """Read `adapter_config.json`.

    Raises:
        AdapterFileError: The file is missing, no JSON, no PERA adapter or of a newer format.
    """
    try:
        values = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        raise missing_adapter(path) from None
    except OSError as error:
        raise AdapterFileError(
            "The adapter's config cannot be read.",
            got=f"{path}: {error.strerror or error}",
            expected="a file that you may read, in a folder written by save_adapter",
            fix="check the path and its permissions, or save the adapter again",
        ) from None
    except JsonError as error:
        raise AdapterFileError(
            "The adapter's config is no JSON that save_adapter writes.",
            got=f"{path}: {error}",
            expected="JSON in UTF-8: an object with each name once and finite numbers",
            fix="save the adapter again",
        ) from None
    return replace(Manifest.from_dict(values), checksums=Checksums.of(values))


def base_name(model: nn.Module) -> str | None:
    """Name or path that a model was loaded from, as its own config says; None if it says nothing."""
    name = getattr(getattr(model, "config", None), "_name_or_path", None)
    return name if isinstance(name, str) and name else None


def versions() -> dict[str, str]:
    """Versions of the libraries that have to do with an adapter."""
    found = {"pera-lightning": __version__}
    for package in ("torch", "lightning", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
