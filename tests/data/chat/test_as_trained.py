"""An adapter folder says how conversations became text in training, and what answers with it does the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from pera_lightning import (
    CommonsenseDataModule,
    InstructionDataModule,
    PeraCallback,
    PeraCausalLM,
    PeraConfig,
    inject_adapter,
)
from pera_lightning.checkpoint.manifest.manifest import Manifest, manifest_of, read_manifest
from pera_lightning.data.chat.as_trained import encoder_as_trained
from pera_lightning.data.chat.prompts import ALPACA_TEMPLATE, ChatEncoder
from pera_lightning.errors import AdapterFileError
from pera_lightning.evaluation.answerer import Answerer
from tests.support.causal_fits import make_trainer, save_llama
from tests.support.pretrained import character_tokenizer

MESSAGES = [{"role": "user", "content": "say a"}]


def prompt(**options: Any) -> str:
    return character_tokenizer().decode(
        ChatEncoder(character_tokenizer(), max_length=999, **options).encode_prompt(MESSAGES)
    )


def as_trained(trained: dict[str, Any], **options: Any) -> str:
    encoder = encoder_as_trained(character_tokenizer(), trained, max_length=999, **options)
    return character_tokenizer().decode(encoder.encode_prompt(MESSAGES))


def test_an_answer_has_the_prompt_of_the_training(tmp_path: Path) -> None:
    row = {"prompt": "say a", "completion": "a"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    data = InstructionDataModule(str(tmp_path / "rows.jsonl"), system_prompt="be brief", batch_size=1)
    trainer = make_trainer(tmp_path, PeraCallback(rank=2, adapter_dir=str(tmp_path / "adapter")))
    trainer.fit(PeraCausalLM(save_llama(tmp_path / "model"), learning_rate=0.01), data)
    manifest = read_manifest(tmp_path / "adapter" / "adapter_config.json")
    assert manifest.chat == {"system_prompt": "be brief", "use_chat_template": True}
    answerer = Answerer(
        str(tmp_path / "adapter"),
        base=None,
        gguf_file=None,
        system_prompt=None,
        use_chat_template=None,
        max_new_tokens=1,
        without_adapter=False,
        merged=False,
        dtype="auto",
    )
    text = answerer.tokenizer.decode(answerer._encoder.encode_prompt(MESSAGES))
    assert text == prompt(system_prompt="be brief") != prompt()


def test_what_is_said_comes_before_what_was_trained() -> None:
    trained = {"system_prompt": "be brief", "use_chat_template": False}
    assert as_trained(trained) == prompt(system_prompt="be brief", use_chat_template=False)
    assert as_trained(trained, system_prompt="") == prompt(use_chat_template=False)
    assert as_trained(trained, system_prompt="x", use_chat_template=True) == prompt(system_prompt="x")
    assert as_trained({}) == prompt()


def test_the_prompts_of_commonsense() -> None:
    trained = CommonsenseDataModule("rows.json").chat_options
    assert trained == {"template": "alpaca"}
    assert as_trained(trained) == prompt(template=ALPACA_TEMPLATE) != as_trained(trained, use_chat_template=True)


@pytest.mark.parametrize("chat", ["text", {"use_chat_template": "yes"}, {"system_prompt": 3}])
def test_damage_is_refused(chat: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    inject_adapter(model, PeraConfig(2))
    values = manifest_of(model).to_dict()
    assert Manifest.from_dict(values).chat == {}
    with pytest.raises(AdapterFileError, match="incomplete or damaged"):
        Manifest.from_dict({**values, "chat": chat})
