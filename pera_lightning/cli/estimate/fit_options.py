"""What the parsed options of a fit say about its memory; nothing is loaded or built for it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from pera_lightning.base_layers import Quantization
from pera_lightning.callback.callback import PeraCallback
from pera_lightning.config import PeraConfig
from pera_lightning.data.instruction import InstructionDataModule
from pera_lightning.data.text import TextDataModule
from pera_lightning.errors import ConfigError, one_line
from pera_lightning.loading.pretrained import PretrainedSource
from pera_lightning.models.causal_lm import PeraCausalLM

FULL_PRECISION = (None, 32, "32", "32-true")


@dataclass(frozen=True)
class FitOptions:
    """The options of a fit that decide about its memory.

    Attributes:
        source: Where the base model comes from.
        architecture: Its config, of transformers.
        pera: The adapter's options.
        dtype: Dtype of the weights that are not quantised.
        quantization: Of the other ones, or None.
        optimizer: Name of the optimizer.
        attention: "eager", "sdpa" or "flash".
        gradient_checkpointing: Whether activations are computed again in the backward pass.
        activation_offloading: Whether they wait for it in CPU memory.
        batch_size: Rows, with packing packs, of a training batch.
        length: Most tokens of such a row.
        in_one_row: Whether the rows or packs of a training batch stand end to end in one row.
        padding: Whether the rows of a training batch differ in length.
        eval_batch_size: Rows of a validation batch; None without a validation.
        eval_length: Most tokens of such a row.
        reduces_gradients: Whether DistributedDataParallel copies the gradients into buckets.
    """

    source: PretrainedSource
    architecture: Any
    pera: PeraConfig
    dtype: torch.dtype
    quantization: Quantization | None
    optimizer: str
    attention: str
    gradient_checkpointing: bool
    activation_offloading: bool
    batch_size: int
    length: int
    in_one_row: bool
    padding: bool
    eval_batch_size: int | None
    eval_length: int
    reduces_gradients: bool = False

    @classmethod
    def of(cls, config: Any) -> FitOptions:
        """From the parsed options of `fit`.

        Raises:
            ConfigError: It is no fit of a PeraCausalLM on an InstructionDataModule or a TextDataModule, runs in a
                precision or under a strategy that is not known here, or the model's architecture cannot be read.
        """
        _check_precision(config.trainer.precision)
        strategy = _strategy(config.trainer.strategy)
        model_class, model = _class_and_options("model", config.model, PeraCausalLM)
        data_class, data = _class_and_options("data", config.data, InstructionDataModule, TextDataModule)
        # Checks its options and loads nothing.
        source = model_class(**model).source
        architecture = _architecture(source)
        validates = any(data.get(name) for name in ("val_files", "val_split", "val_rows", "dataset"))
        rows = _rows_of_text if issubclass(data_class, TextDataModule) else _rows_of_instructions
        return cls(
            source=source,
            architecture=architecture,
            # How the factors start takes no memory, and LoftQ would want the base's weights.
            pera=replace(PeraCallback(**config.pera.as_dict()).config, init="default"),
            dtype=_dtype(model["dtype"], architecture, source),
            quantization=model["quantization"],
            optimizer=model["optimizer"],
            attention=_attention(model["attn_implementation"]),
            gradient_checkpointing=model["gradient_checkpointing"],
            activation_offloading=model["activation_offloading"],
            batch_size=data["batch_size"],
            **rows(data),
            eval_batch_size=(data["eval_batch_size"] or data["batch_size"]) if validates else None,
            reduces_gradients=strategy == "ddp" or _are_several(config.trainer),
        )

    @property
    def longest(self) -> int | None:
        """Most tokens that the model was made for, if it says."""
        return getattr(self.architecture, "max_position_embeddings", None)


def _rows_of_instructions(data: Mapping[str, Any]) -> dict[str, Any]:
    longest, packing = data["max_length"], data["packing"]
    length = (packing and data["pack_length"]) or longest
    in_one_row = packing or data["padding_free"]
    return {"length": length, "eval_length": longest, "in_one_row": in_one_row, "padding": True}


def _rows_of_text(data: Mapping[str, Any]) -> dict[str, Any]:
    """Blocks of one length, whose every token is to be learnt."""
    length = data["block_length"]
    return {"length": length, "eval_length": length, "in_one_row": False, "padding": False}


def _check_precision(precision: object) -> None:
    if precision not in FULL_PRECISION:
        raise ConfigError(
            "estimate counts fits in the model's own dtype only.",
            got=f"trainer.precision: {precision}",
            expected="no precision",
            fix="leave trainer.precision out and set the model's dtype: bfloat16 (the factors stay float32)",
        )


def _strategy(strategy: Any) -> str:
    """The strategy's kind: "auto" or "ddp". Each of its GPUs holds the whole model."""
    path = str(getattr(strategy, "class_path", strategy))
    name = path.rpartition(".")[2]
    if name.startswith("ddp") or name == "DDPStrategy":
        return "ddp"
    if name in ("auto", "single_device", "SingleDeviceStrategy"):
        return "auto"
    raise ConfigError(
        "estimate counts GPUs that hold the whole model, each for itself.",
        got=f"trainer.strategy: {path}",
        expected="auto or ddp",
        fix="leave trainer.strategy out to see what one GPU would need alone; docs/at_scale.md counts sharded fits of "
        "8B to 405B models, and benchmarks.sharded_memory those of others",
    )


def _are_several(trainer: Any) -> bool:
    """Whether the fit certainly runs on several GPUs."""
    # A number, a list, or either as words of the command line: "2", "0,1".
    devices = trainer.devices.strip("[]") if isinstance(trainer.devices, str) else trainer.devices
    if isinstance(devices, str) and "," in devices:
        devices = devices.rstrip(",").split(",")
    number = len(devices) if isinstance(devices, list) else devices
    return trainer.num_nodes > 1 or (str(number).isdigit() and int(number) > 1)


def _class_and_options(section: str, chosen: Any, *expected: type) -> tuple[Any, Mapping[str, Any]]:
    path = getattr(chosen, "class_path", None)
    if path is None:
        raise _other_class(section, "nothing", expected)
    module, _, name = path.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    if not issubclass(found, expected):
        raise _other_class(section, path, expected)
    return found, chosen.init_args.as_dict()


def _other_class(section: str, got: str, expected: tuple[type, ...]) -> ConfigError:
    names = " or ".join(known.__name__ for known in expected)
    return ConfigError(
        f"estimate cannot tell the memory of this {section}.",
        got=got,
        expected=names,
        fix=f"set {section}.class_path to {names}, or a subclass",
    )


def _attention(implementation: str | None) -> str:
    if implementation is None or implementation == "sdpa":
        return "sdpa"
    if implementation == "eager":
        return "eager"
    if implementation.startswith("flash_attention"):
        return "flash"
    raise ConfigError(
        "estimate does not know what this attention keeps.",
        got=f"attn_implementation: {implementation}",
        expected="eager, sdpa or flash_attention_2",
        fix="estimate with sdpa, which fused kernels come close to",
    )


def _dtype(name: str, architecture: Any, source: PretrainedSource) -> torch.dtype:
    if name == "auto" and source.gguf_file is None:
        stored = getattr(architecture, "dtype", None) or torch.float32
        return getattr(torch, stored) if isinstance(stored, str) else stored
    # Native is bfloat16 on a GPU, whatever this machine has.
    return torch.bfloat16 if name in ("auto", "native") else getattr(torch, name)


def _architecture(source: PretrainedSource) -> Any:
    from transformers import AutoConfig

    source.check()
    options = {"revision": source.revision, "gguf_file": source.gguf_file}
    given = {name: value for name, value in options.items() if value is not None}
    try:
        source.header()
        return AutoConfig.from_pretrained(source.pretrained, trust_remote_code=source.trust_remote_code, **given)
    except Exception as error:  # whatever it does with a damaged file
        raise ConfigError(
            "The model's architecture cannot be read.",
            got=f"{source.name}: {one_line(error)}",
            expected="a hub id (with a network, or cached earlier) or a folder with a config.json",
            fix="do what the reason says; else download the repository's config.json and name its folder",
        ) from error
