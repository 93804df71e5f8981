"""Rows longer than the positions of the model, and tokens beyond its embedding, which ended in a bare IndexError."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pera_lightning import PeraCallback, PeraCausalLM, PeraSequenceClassifier
from pera_lightning.data.glue import GlueDataModule
from pera_lightning.data.instruction import InstructionDataModule
from pera_lightning.data.model_limits import ModelLimits
from pera_lightning.data.text import TextDataModule
from pera_lightning.errors import ConfigError
from pera_lightning.models.generation import generate_answers
from tests.support.causal_fits import make_trainer
from tests.support.classifiers import save_encoder, write_task
from tests.support.models import tiny_gpt2, tiny_llama
from tests.support.pretrained import character_tokenizer, save_pretrained

GOOD = '{"prompt": "q", "completion": "a"}'


def write(path: Path, *lines: str | bytes) -> str:
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
    return str(path)


def questions(folder: Path, length: int = 30) -> str:
    rows = [{"prompt": "q" * length, "completion": "a"}] * 4
    return write(folder / "rows.jsonl", *map(json.dumps, rows))


def fit(folder: Path, model: nn.Module, data: Any, **options: Any) -> Any:
    module = PeraCausalLM(save_pretrained(folder / "model", model), **options)
    trainer = make_trainer(folder, PeraCallback(rank=2), max_steps=1)
    trainer.fit(module, data)
    return trainer


def short_gpt2(positions: int = 24) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 64, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": positions}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=2))


def short_opt() -> nn.Module:
    from transformers import OPTConfig, OPTForCausalLM

    sizes = {"vocab_size": 64, "hidden_size": 16, "ffn_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return OPTForCausalLM(OPTConfig(**sizes, word_embed_proj_dim=16, max_position_embeddings=24))


@pytest.mark.parametrize("make", [short_gpt2, short_opt])
@pytest.mark.parametrize("options", [{}, {"packing": True}, {"padding_free": True}, {"group_by_length": True}])
def test_rows_longer_than_the_positions(make: Callable[[], nn.Module], options: Any, tmp_path: Path) -> None:
    data = InstructionDataModule(questions(tmp_path), max_length=60, **options)
    with pytest.raises(ConfigError, match=r"(?s)longer than the model has positions.* in the train split.*max_length"):
        fit(tmp_path, make(), data)


def test_rows_that_just_fit(tmp_path: Path) -> None:
    trainer = fit(tmp_path, short_gpt2(), InstructionDataModule(questions(tmp_path), max_length=24))
    assert trainer.global_step == 1
    assert trainer.datamodule._splits["train"].lengths == [24] * 4


def test_validation_rows_longer_than_the_positions(tmp_path: Path) -> None:
    short = write(tmp_path / "short.jsonl", GOOD)
    data = InstructionDataModule(short, questions(tmp_path), max_length=60)
    with pytest.raises(ConfigError, match=r"(?s)longer than the model has positions.* in the val split"):
        fit(tmp_path, short_gpt2(), data)


def test_blocks_longer_than_the_positions(tmp_path: Path) -> None:
    data = TextDataModule(write(tmp_path / "a.txt", "ab" * 100), block_length=25, batch_size=2)
    with pytest.raises(ConfigError, match=r"(?s)longer than the model has positions.*block_length"):
        fit(tmp_path, short_gpt2(), data)


@pytest.mark.parametrize("kind", ["BertForSequenceClassification", "RobertaForSequenceClassification"])
def test_sentences_longer_than_the_positions(kind: str, tmp_path: Path) -> None:
    folder = write_task(tmp_path / "CoLA", "cola", 8)
    train = tmp_path / "CoLA" / "train.tsv"
    train.write_text(train.read_text() + f"x\t1\t\t{'a' * 40}\n")
    encoder = save_encoder(tmp_path / "encoder", kind, max_position_embeddings=20)
    # Of RoBERTa's positions the first ones are the padding's.
    for length, fits in ((21, False), (20, kind.startswith("Bert")), (18, True)):
        data = GlueDataModule("cola", folder, max_length=length, batch_size=9)
        module = PeraSequenceClassifier(encoder)
        trainer = make_trainer(tmp_path, PeraCallback(rank=2), max_steps=1)
        if fits:
            trainer.fit(module, data)
        else:
            with pytest.raises(ConfigError, match=r"(?s)longer than the model has positions.*max_length"):
                trainer.fit(module, data)


@pytest.mark.parametrize("missing", ["token", "pad"])
def test_a_tokenizer_with_more_tokens_than_the_model(missing: str, tmp_path: Path) -> None:
    tokenizer = character_tokenizer()
    if missing == "pad":
        tokenizer.add_special_tokens({"pad_token": "<new pad>"})
        tokenizer.add_tokens([f"<more {number}>" for number in range(64)])
        tokenizer.add_special_tokens({"pad_token": "<newest pad>"})
    else:
        tokenizer.add_tokens(["q" * number for number in range(3, 60)])
    with pytest.raises(ConfigError, match=r"(?s)tokens that the model does not have.*64 rows.*resize_token_embeddings"):
        fit(tmp_path, tiny_llama(), InstructionDataModule(questions(tmp_path), tokenizer=tokenizer))
    data = TextDataModule(write(tmp_path / "a.txt", "q" * 100), tokenizer=tokenizer, block_length=2, batch_size=1)
    if missing == "token":
        with pytest.raises(ConfigError, match="tokens that the model does not have"):
            fit(tmp_path, tiny_gpt2(), data)


def test_an_embedding_that_was_enlarged_takes_them(tmp_path: Path) -> None:
    tokenizer = character_tokenizer()
    tokenizer.add_tokens(["q" * number for number in range(3, 60)])
    model = tiny_llama()
    model.resize_token_embeddings(len(tokenizer))
    data = InstructionDataModule(questions(tmp_path), tokenizer=tokenizer)
    assert fit(tmp_path, model, data).global_step == 1


def test_computed_positions_go_on_with_a_warning(tmp_path: Path) -> None:
    data = InstructionDataModule(questions(tmp_path), max_length=60)
    with pytest.warns(UserWarning, match=r"tokens in the train split, while LlamaForCausalLM was made for 24"):
        assert fit(tmp_path, tiny_llama(max_position_embeddings=24), data).global_step == 1


def test_generation_ends_where_the_positions_do() -> None:
    model, tokenizer = short_gpt2(), character_tokenizer()
    # No end of an answer before.
    model.generation_config.eos_token_id = None
    prompts = [torch.randint(8, 60, (length,)) for length in (20, 5)]
    with pytest.warns(UserWarning, match="after a prompt of 20 tokens answers end at 5 tokens"):
        answers = generate_answers(model, tokenizer, prompts, 50)
    assert len(answers) == 2
    with pytest.raises(ConfigError, match=r"(?s)longer than the model has positions.*25 tokens in the prompts"):
        generate_answers(model, tokenizer, [torch.randint(8, 60, (25,))], 5)
    with pytest.raises(ConfigError, match="tokens that the model does not have"):
        generate_answers(model, tokenizer, [torch.tensor([64])], 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate_answers(model, tokenizer, prompts, 5)


def test_limits_of_a_module_with_several_models() -> None:
    both = nn.ModuleList([tiny_gpt2(), tiny_llama()])
    assert ModelLimits.of(both) is None
    assert ModelLimits.of(nn.Linear(2, 2)) is None
    assert ModelLimits.of(nn.Sequential(short_gpt2())) == ModelLimits("GPT2LMHeadModel", 64, 24, 24)
