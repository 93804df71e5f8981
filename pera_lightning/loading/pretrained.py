"""Loading a pretrained causal language model through transformers."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pera_lightning.base_layers import QUANTIZATIONS, Quantization, check_quantization, set_compute_dtype
from pera_lightning.errors import ConfigError, PeraError, one_line
from pera_lightning.injection import quantize_model
from pera_lightning.loading.base_config import check_base_config, check_base_size
from pera_lightning.loading.gguf_weights import check_finite, dense_gguf
from pera_lightning.loading.model_place import check_model_place
from pera_lightning.loading.narrow_weights import widen_activations
from pera_lightning.loading.stored_weights import StoredWeights, weights_in
from pera_lightning.requirements import READS_GGUF, require
from pera_lightning.storage.gguf_header import GgufHeader, read_header
from pera_lightning.storage.remote import local_name

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class PretrainedSource:
    """Where a model and its tokenizer come from.

    Args:
        pretrained: A hub id such as `org/model`, or a local folder.
        gguf_file: Name of a GGUF file in that repository or folder; its weights are dequantised on loading.
        revision: Branch, tag or commit of the hub repository.
        trust_remote_code: Whether code that comes with the repository may run.
    """

    pretrained: str
    gguf_file: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "pretrained", local_name(self.pretrained, "the base model"))

    @property
    def name(self) -> str:
        """The source in one string: `pretrained`, or `pretrained/gguf_file`."""
        return self.pretrained if self.gguf_file is None else f"{self.pretrained}/{self.gguf_file}"

    def check(self) -> None:
        """Find out what can be known without loading anything.

        Raises:
            ConfigError: The folder or the GGUF file does not exist, or a package that reads GGUF is missing or too old.
        """
        folder = Path(self.pretrained)
        if folder.is_dir():
            _check_folder(folder, self.gguf_file)
        elif folder.is_file():
            raise ConfigError(
                "`pretrained` names a single file.",
                got=self.pretrained,
                expected="a hub id or a folder",
                fix=f"use pretrained: {folder.parent}, and for a GGUF file gguf_file: {folder.name}",
            )
        else:
            check_model_place(self.pretrained)
        if self.gguf_file is not None:
            # accelerate is no dependency of the gguf package, but transformers loads no GGUF file without it.
            require("Loading GGUF files", "gguf", "accelerate", extra="gguf")
            require("Loading GGUF files", "transformers", oldest=READS_GGUF)

    def header(self) -> GgufHeader | None:
        """What the GGUF file says of itself; None without one. GgufDamage or OSError if it cannot be right or read."""
        if self.gguf_file is None or Path(self.pretrained).is_dir():
            return None if self.gguf_file is None else read_header(Path(self.pretrained) / self.gguf_file)
        from transformers.utils.hub import cached_file

        downloaded = cached_file(self.pretrained, self.gguf_file, revision=self.revision)
        return None if downloaded is None else read_header(downloaded)

    def weights(self) -> StoredWeights:
        """How much its files hold, as far as that is known before they are loaded.

        Raises:
            GgufDamage, WeightsDamage, OSError: A file cannot be right, or read.
        """
        if (header := self.header()) is not None:
            return StoredWeights(len(header.shapes), header.elements)
        # A model that is code of its own is made by that alone.
        known = Path(self.pretrained).is_dir() and not self.trust_remote_code
        return weights_in(Path(self.pretrained)) if known else StoredWeights(0, 0)

    def options(self) -> dict[str, Any]:
        """The keyword arguments that every `from_pretrained` of this source gets."""
        options: dict[str, Any] = {"trust_remote_code": self.trust_remote_code}
        if self.revision is not None:
            options["revision"] = self.revision
        if self.gguf_file is not None:
            options["gguf_file"] = self.gguf_file
        return options


def load_causal_lm(
    source: PretrainedSource,
    *,
    dtype: str = "auto",
    attn_implementation: str | None = None,
    quantization: Quantization | None = None,
) -> PreTrainedModel:
    """Load a causal language model, in eval mode as transformers returns it.

    Quantised weights are made one layer at a time. On a CPU they stay there; where there is a GPU, transformers puts a
    quantised model on the present one.

    Args:
        source: Where the model comes from.
        dtype: Name of a floating torch dtype; "native": what `native_dtype` says; or "auto": the one the weights
            were saved in, "native" for GGUF, whose weights have none.
        attn_implementation: "eager", "sdpa", "flash_attention_2", ...; None leaves the choice to transformers.
        quantization: How bitsandbytes stores the linear layers but the output head; None: not at all. Everything else
            keeps `dtype`.

    Raises:
        ConfigError: The source cannot be loaded as a causal language model, or holds only part of its weights, or
            a package that this takes is missing or too old.
    """
    from transformers import AutoModelForCausalLM

    source.check()
    if quantization is not None:
        check_quantization(quantization)
    options = source.options()
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    if source.gguf_file is not None:
        options |= dense_gguf()
        dtype = "native" if dtype == "auto" else dtype
    elif quantization is not None:
        require("Loading a model in 4 or 8 bits", "bitsandbytes", "accelerate", extra="quant")
        options["quantization_config"] = _quantization_config(quantization)
    dtype = native_dtype() if dtype == "native" else dtype
    with while_loading("causal language model", source):
        check_base_size(
            lambda: build_causal_lm(source, dtype=torch.float32, attn_implementation="eager"), source.weights()
        )
        # Any: with output_loading_info it returns a pair, which its annotation does not know.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source.pretrained, dtype=dtype, output_loading_info=True, **options
        )
        model, loading = loaded
        if source.gguf_file is not None:
            check_finite(model)
    if missing := sorted(loading["missing_keys"]):
        # transformers fills these with random numbers and only warns; frozen under an adapter they stay random.
        raise ConfigError(
            f"{source.name} lacks {len(missing)} weights of a {type(model).__name__}.",
            got=f"no {', '.join(missing[:3])}" + (", ..." if len(missing) > 3 else ""),
            expected="a checkpoint of a causal language model with all its weights, output head included",
            fix="name a model that was saved as a causal language model",
        )
    if quantization is not None and source.gguf_file is not None:
        quantize_model(model, quantization, device="cuda" if torch.cuda.is_available() else None)
    if quantization is not None and compute_dtype(model.dtype) != model.dtype:
        widen_activations(model, compute_dtype(model.dtype))
    set_compute_dtype(model, compute_dtype(model.dtype))
    return model


def build_causal_lm(source: PretrainedSource, *, dtype: torch.dtype, attn_implementation: str) -> PreTrainedModel:
    """The model that `load_causal_lm` loads, in eval mode, on the meta device: without weights and memory.

    Args:
        source: Where its config comes from.
        dtype: Of its weights.
        attn_implementation: "eager", "sdpa", ...
    """
    from transformers import AutoModelForCausalLM

    options = {"attn_implementation": attn_implementation, "trust_remote_code": source.trust_remote_code}
    with torch.device("meta"), while_loading("causal language model", source):
        model = AutoModelForCausalLM.from_config(load_config(source), dtype=dtype, **options)
    return model.eval()


def load_config(source: PretrainedSource) -> PreTrainedConfig:
    """The config of a model, without its weights; ConfigError if it cannot be loaded."""
    from transformers import AutoConfig

    source.check()
    with while_loading("config", source):
        weights = source.weights()
        config = AutoConfig.from_pretrained(source.pretrained, **source.options())
        check_base_config(config.to_dict(), weights)
    return config


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which 4-bit layers of a model of this dtype are best multiplied on this machine.

    Products are what a CPU without bf16 instructions is slow at; everything else may keep its dtype.
    """
    return dtype if torch.cuda.is_available() or native_dtype() == "bfloat16" else torch.float32


def _quantization_config(quantization: Quantization) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(**QUANTIZATIONS[quantization].options())


def native_dtype() -> str:
    """bfloat16 where this machine multiplies it in hardware, else float32.

    Without such instructions bfloat16 on a CPU is many times slower than float32.
    """
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Not in older versions of torch: float32 is right everywhere, only slower.
        capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        native = any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
    return "bfloat16" if native else "float32"


def _check_folder(folder: Path, gguf_file: str | None) -> None:
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.gguf"))
    if gguf_file is None:
        if not (folder / "config.json").is_file():
            raise ConfigError(
                "The folder holds no transformers model.",
                got=f"{folder} without a config.json",
                expected="a folder written by save_pretrained, or a GGUF file",
                fix=f"set gguf_file: {found[0]}" if found else "name the folder that holds config.json",
            )
    elif not (folder / gguf_file).is_file():
        near = difflib.get_close_matches(gguf_file, found, n=5, cutoff=0.0)
        raise ConfigError(
            "The GGUF file does not exist.",
            got=f"{gguf_file} in {folder}",
            expected=f"one of {', '.join(near)}" if near else "a folder that holds GGUF files (this one has none)",
            fix="correct gguf_file" if near else "correct pretrained and gguf_file",
        )


@contextmanager
def while_loading(what: str, source: PretrainedSource) -> Iterator[None]:
    """Make a ConfigError of whatever transformers raises while it loads `what` from a source."""
    try:
        yield
    except PeraError:
        raise
    # Any: transformers takes configs, tokenizers and GGUF files apart without asking first whether they are whole.
    except Exception as error:
        raise _cannot_load(what, source, error) from error


def _cannot_load(what: str, source: PretrainedSource, error: Exception) -> ConfigError:
    """The error of a source from which transformers could not load `what`."""
    if Path(source.pretrained).is_dir():
        expected = f"a folder from which transformers can load a {what}"
        fix = "do what the reason says; else check that the folder is complete and holds a model of this kind"
    else:
        expected = f"a hub id, or a folder (none of this name in {Path.cwd()})"
        fix = (
            "do what the reason says; else check the id, the revision and the network (a gated repository needs "
            "a login: `hf auth login`), or download the repository and name its folder"
        )
    return ConfigError(
        f"The {what} cannot be loaded.",
        got=f"{source.name}: {one_line(error)}",
        expected=expected,
        fix=fix,
    )
