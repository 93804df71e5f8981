"""Tries an installed wheel as a user would: a short fit and an answer, in a folder that knows nothing of this one.

python .ci/try_wheel.py     with the interpreter of the environment that the wheel was installed into
"""

from __future__ import annotations

import json
import os
import string
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import torch
import yaml
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import pera_lightning

COMMAND = Path(sys.executable).with_name("pera_lightning")
SPECIAL = ["<pad>", "<eos>", "<unk>"]
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}<eos>{% endfor %}"


def main() -> None:
    """Look at what was installed, then use it."""
    check_files()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        save_model()
        write_run()
        fit()
        print(f"pera_lightning {pera_lightning.__version__} trains from its wheel")


def check_files() -> None:
    """The wheel has what users need, and is what is imported."""
    distribution = metadata.distribution("pera-lightning")
    package = Path(pera_lightning.__file__).parent
    files = {Path(str(distribution.locate_file(file))) for file in distribution.files or ()}
    assert package / "py.typed" in files, f"the package comes from {package}, not from the wheel"
    assert any(file.name == "LICENSE" for file in files)
    assert not [file for file in files if file.suffix == ".py" and package not in file.parents]
    assert distribution.version == pera_lightning.__version__


def save_model() -> None:
    """Write a tiny random language model, whose tokens are characters."""
    tokens = [*SPECIAL, *string.ascii_lowercase, *string.digits, *" ?+"]
    tokenizer = Tokenizer(models.WordLevel({token: number for number, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=CHAT_TEMPLATE, **names).save_pretrained("model")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokens), **sizes)).save_pretrained("model")


def write_run() -> None:
    """Write a config and its data."""
    rows = [{"prompt": f"{a} + {b}?", "completion": str(a + b)} for a in range(5) for b in range(5)]
    Path("train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    run = {
        "trainer": {"accelerator": "cpu", "max_epochs": 2, "enable_checkpointing": False},
        "pera": {"rank": 2, "adapter_dir": "adapter"},
        "model": {"class_path": "PeraCausalLM", "init_args": {"pretrained": "model", "learning_rate": 0.01}},
        "data": {"class_path": "InstructionDataModule", "init_args": {"train_files": "train.jsonl"}},
    }
    Path("run.yaml").write_text(yaml.safe_dump(run), encoding="utf-8")


def fit() -> None:
    """Train, and let the adapter answer."""
    assert call("--version") == f"pera_lightning {pera_lightning.__version__}\n"
    call("fit", "--config", "run.yaml")
    assert Path("adapter", "adapter_model.safetensors").is_file()
    call("generate", "--adapter", "adapter", "--prompt", "1 + 1?", "--max_new_tokens", "2")


def call(*words: str) -> str:
    """What the installed command prints, on a machine without the Hub and without the source."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [COMMAND, *words], check=True, stdout=subprocess.PIPE, text=True, timeout=300, env=environment
    ).stdout


if __name__ == "__main__":
    main()
