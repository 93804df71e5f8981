"""A language model so small that the rank of an adapter binds: it has read WikiText, and is to learn Shakespeare."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pera_lightning import PeraCausalLM, TextDataModule

PRETRAINING_STEPS = 600


def write_small_model(data: Path, folder: Path, steps: int = PRETRAINING_STEPS) -> None:
    """Write a model, pretrained on WikiText-2, and the parts of Shakespeare's plays; nothing if they are there.

    Args:
        data: Folder with wikitext2/train.txt and text/tinyshakespeare.txt.
        folder: Where base/ (the model and its tokenizer), train.txt, val.txt and test.txt go.
        steps: Optimizer steps of the pretraining.
    """
    last = folder / "base/tokenizer.json"
    if last.is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    plays = (data / "text/tinyshakespeare.txt").read_text(encoding="utf-8")
    ends = [0, len(plays) * 90 // 100, len(plays) * 95 // 100, len(plays)]
    for name, start, end in zip(("train", "val", "test"), ends, ends[1:], strict=False):
        (folder / f"{name}.txt").write_text(plays[start:end], encoding="utf-8")
    _write_start(folder / "start")
    pretrained = train_whole(folder / "start", data / "wikitext2/train.txt", steps)
    pretrained.built_model().save_pretrained(folder / "base")
    pretrained.tokenizer.save_pretrained(last.parent)


def _write_start(folder: Path) -> None:
    """A model with random weights, whose tokens are bytes."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: number for number, text in enumerate(["<eos>", *letters])}
    bytes_only = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bytes_only.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=bytes_only, eos_token="<eos>").save_pretrained(folder)
    pl.seed_everything(0, verbose=False)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def train_whole(start: Path, text: Path, steps: int, learning_rate: float = 4e-3) -> PeraCausalLM:
    """Train every parameter of the model in the folder `start` on a text; returns its module."""
    pl.seed_everything(0, verbose=False)
    module = PeraCausalLM(str(start), learning_rate=learning_rate, warmup_ratio=0.05, schedule="cosine")
    blocks = TextDataModule(str(text), block_length=64, batch_size=32)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(module, blocks)
    return module
