"""The forms of an export: everything that tells one from another.

A new one is an entry in `LORA_FORMS` or `MODEL_FORMS` and its name in `ExportForm`; nothing else compares their names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any, Literal

from pera_lightning.checkpoint import Manifest
from pera_lightning.checkpoint.base_code import auto_class
from pera_lightning.errors import ConfigError, ExportError
from pera_lightning.export.export_report import ExportReport
from pera_lightning.export.gguf.export_merged_gguf import export_merged_gguf
from pera_lightning.export.gguf.gguf_adapter import GGUF_FILE, read_gguf_adapter, write_gguf_adapter
from pera_lightning.export.gguf.gguf_writing import MERGED_GGUF_FILE
from pera_lightning.export.lora.factors_format import FACTORS_FILE, read_factors, write_factors
from pera_lightning.export.lora.lora_factors import StoredLora
from pera_lightning.export.lora.lora_losses import LLAMA_CPP, refuse_losses
from pera_lightning.export.lora.peft_format import read_peft, write_peft
from pera_lightning.export.lora.plain_lora import PlainLora
from pera_lightning.export.merged.merged_model import export_merged
from pera_lightning.storage.recognition.adapter_kind import WEIGHTS_FILE

ExportForm = Literal["peft", "vllm", "llamacpp", "merged", "gguf", "safetensors"]
"""What users call them; a literal, so that `--help` can list them."""
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM's --max-lora-rank can have."""


@dataclass(frozen=True)
class LoraForm:
    """A plain LoRA for somebody who loads it.

    Attributes:
        title: Who or what that is, for messages.
        files: What the LoRA's values are in, in the folder; an upload takes them too.
        write: Writes them: of the LoRA, into a folder, with the config of the transformers model (or None).
        read: Reads them back: from the folder, with the config, the layers of these names.
        how_to_load: What to do with the export, as a line: its folder, the base model's name and the rank.
        linear_only: Whether adapters of linear layers are all that it takes.
        ranks: The ranks that there is room for, in rising order; empty if any rank is taken.
        of_peft: Whether it is PEFT's format: PEFT is asked whether it loads it, and a card says how.
        needs_config: Whether `write` and `read` cannot do without the config.
        wrapped: Whether the names may be those of a model inside of another module.
    """

    title: str
    files: tuple[str, ...]
    write: Callable[[PlainLora, Path, Any], None]
    read: Callable[[Path, Any, Iterable[str]], StoredLora]
    how_to_load: Callable[[Path, str, int], str]
    linear_only: bool = False
    ranks: tuple[int, ...] = ()
    of_peft: bool = False
    needs_config: bool = False
    wrapped: bool = False

    def refuse_losses(self, manifest: Manifest) -> None:
        """Raise ExportError if it would not hold all of an adapter."""
        refuse_losses(self.title, manifest, linear_only=self.linear_only, in_calls=self.of_peft)

    def refuse_rank(self, rank: int) -> None:
        """Raise ExportError if there is no room for a LoRA of this rank."""
        if self.ranks and rank > self.ranks[-1]:
            most = self.ranks[-1]
            raise ExportError(
                f"{self.title} takes no LoRA of this rank.",
                got=f"rank {rank}, the expanded rank of the adapter",
                expected=f"at most {most}",
                fix=f"cut it by singular values: --rank {most} (rank={most} in Python) or less, "
                "or --max_error 0.01 for the smallest rank that keeps 99.99 % of each layer's energy",
            )

    def check_config(self, model_config: Any) -> None:
        """Raise ExportError if the config is needed and not there."""
        if self.needs_config and model_config is None:
            raise ExportError(
                "GGUF files name layers by the kind of model, which an adapter folder does not tell.",
                got="no config of the model",
                expected="a transformers model, or its config",
                fix="export_lora(model, ...), or model_config=AutoConfig.from_pretrained(base)",
            )


@dataclass(frozen=True)
class ModelForm:
    """A whole model with the adapter in its weights.

    Attributes:
        export: Writes it: adapter folder, folder to write to, and as keyword arguments `base`, `gguf_file`, `compare`,
            `overwrite`, `dtype` where one is asked for, and `into` where it `takes_into`.
        how_to_load: What to do with the folder, as a line; the adapter's manifest says of what kind the model is.
        takes_into: Whether one can choose which weights of a quantised base the adapter is merged onto.
    """

    export: Callable[..., ExportReport]
    how_to_load: Callable[[Path, Manifest], str]
    takes_into: bool = False


def _peft_line(folder: Path, base: str, rank: int) -> str:
    return f"PeftModel.from_pretrained(model, {str(folder)!r})  # model: {base}"


def _vllm_line(folder: Path, base: str, rank: int) -> str:
    room = next(limit for limit in VLLM_RANKS if limit >= rank)
    return (
        f"vllm serve {quote(base)} --enable-lora --max-lora-rank {room} "
        f"--lora-modules {quote(f'{folder.resolve().name}={folder}')}"
    )


def _llama_cpp_line(folder: Path, base: str, rank: int) -> str:
    return f"llama-cli -m base.gguf --lora {quote(str(folder / GGUF_FILE))}  # base.gguf: {base} as GGUF"


_PEFT: dict[str, Any] = {
    "files": (WEIGHTS_FILE,),
    "write": lambda lora, folder, _: write_peft(lora, folder),
    "read": lambda folder, *_: read_peft(folder),
    "of_peft": True,
}
LORA_FORMS: dict[str, LoraForm] = {
    "peft": LoraForm("PEFT", how_to_load=_peft_line, **_PEFT),
    "vllm": LoraForm("vLLM", how_to_load=_vllm_line, linear_only=True, ranks=VLLM_RANKS, **_PEFT),
    "llamacpp": LoraForm(
        LLAMA_CPP,
        (GGUF_FILE,),
        write=lambda lora, folder, config: write_gguf_adapter(lora, folder / GGUF_FILE, config),
        read=lambda folder, config, layers: read_gguf_adapter(folder / GGUF_FILE, config, layers),
        how_to_load=_llama_cpp_line,
        linear_only=True,
        needs_config=True,
    ),
    "safetensors": LoraForm(
        "A file of factors",
        (FACTORS_FILE,),
        write=lambda lora, folder, _: write_factors(lora, folder),
        read=lambda folder, *_: read_factors(folder),
        how_to_load=lambda folder, *_: f"weight of each layer + up @ down, from {folder / FACTORS_FILE}",
        wrapped=True,
    ),
}
"""Name -> how a LoRA is written, in the order in which messages list them."""
MODEL_FORMS: dict[str, ModelForm] = {
    "merged": ModelForm(
        export_merged,
        lambda folder, of: f"{auto_class(of.architecture) or of.architecture}.from_pretrained({str(folder)!r})",
        takes_into=True,
    ),
    "gguf": ModelForm(export_merged_gguf, lambda folder, _: f"llama-cli -m {quote(str(folder / MERGED_GGUF_FILE))}"),
}
"""Name -> how a model is written."""


def lora_form(name: str) -> LoraForm:
    """The form of a LoRA that has this name.

    Raises:
        ConfigError: None has.
    """
    if name not in LORA_FORMS:
        raise ConfigError(
            "There is no such target of an export.",
            got=repr(name),
            expected=" or ".join(map(repr, LORA_FORMS)),
            fix="use 'peft', which most servers read",
        )
    return LORA_FORMS[name]
