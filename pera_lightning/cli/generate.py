"""`generate`: answer one prompt with an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pera_lightning.checkpoint.adapter_files import CONFIG_FILE
from pera_lightning.checkpoint.manifest import read_manifest
from pera_lightning.integration.adapter_source import adapter_quantization, adapter_source


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
    source = adapter_source(Path(adapter), manifest, base, gguf_file)
    tokenizer = load_tokenizer(source)
    model = load_causal_lm(source, dtype=dtype, quantization=adapter_quantization(manifest, source))
    if not without_adapter:
        load_adapter(model, adapter)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder = ChatEncoder(
        tokenizer, max_length=1_000_000, use_chat_template=use_chat_template, system_prompt=system_prompt
    )
    ids = torch.tensor(encoder.encode_prompt([{"role": "user", "content": prompt}]))
    [answer] = generate_answers(model.to(device), tokenizer, [ids], max_new_tokens)  # type: ignore[arg-type]
    print(answer)
