"""`generate`: answer one prompt with an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, cast

from pera_lightning.bases import QUANTIZATIONS, Quantization
from pera_lightning.checkpoint.adapter_files import CONFIG_FILE
from pera_lightning.checkpoint.manifest import FLOATING, Manifest, read_manifest
from pera_lightning.errors import ConfigError
from pera_lightning.integration.pretrained import PretrainedSource


def generate(
    adapter: str,
    prompt: str,
    base: str | None = None,
    gguf_file: str | None = None,
    system_prompt: str | None = None,
    use_chat_template: bool = True,
    max_new_tokens: int = 256,
    without_adapter: bool = False,
    dtype: Literal["auto", "native", "float32", "bfloat16", "float16"] = "auto",
) -> None:
    """Print the answer of a causal language model with a PERA adapter, decoded greedily.

    The prompt goes through the tokenizer's chat template as in training with InstructionDataModule, and the base is
    quantised as it was there.

    Args:
        adapter: Folder of the adapter, as the fit wrote it.
        prompt: What the user says.
        base: Hub id or folder of the base model; by default the one that the adapter names.
        gguf_file: Name of a GGUF file in `base`.
        system_prompt: The system message that the adapter was trained with, if it was trained with one.
        use_chat_template: Whether the adapter was trained with the tokenizer's chat template.
        max_new_tokens: Longest answer, in tokens.
        without_adapter: Let the base model answer, to compare.
        dtype: Dtype of the base's weights; that of the training (`model.init_args.dtype`) is the best choice.
    """
    import torch

    from pera_lightning.checkpoint import load_adapter
    from pera_lightning.integration.data.prompts import ChatEncoder
    from pera_lightning.integration.generation import generate_answers
    from pera_lightning.integration.pretrained import load_causal_lm, load_tokenizer

    manifest = read_manifest(Path(adapter) / CONFIG_FILE)
    source = _source(Path(adapter), manifest, base, gguf_file)
    tokenizer = load_tokenizer(source)
    model = load_causal_lm(source, dtype=dtype, quantization=_quantization(manifest))
    if not without_adapter:
        load_adapter(model, adapter)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder = ChatEncoder(
        tokenizer, max_length=1_000_000, use_chat_template=use_chat_template, system_prompt=system_prompt
    )
    ids = torch.tensor(encoder.encode_prompt([{"role": "user", "content": prompt}]))
    [answer] = generate_answers(model.to(device), tokenizer, [ids], max_new_tokens)  # type: ignore[arg-type]
    print(answer)


def _quantization(manifest: Manifest) -> Quantization | None:
    """How to quantise the base so that the adapter fits."""
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


def _source(adapter: Path, manifest: Manifest, base: str | None, gguf_file: str | None) -> PretrainedSource:
    """Where the base model comes from: what the user says, else what the adapter names."""
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
