"""What an adapter's folder keeps of the system messages of its training rows, and who is told when they differ."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from pera_lightning import InstructionDataModule, PeraCallback, PeraCausalLM, PeraConfig, inject_adapter
from pera_lightning.checkpoint.manifest.manifest import Manifest, manifest_of, read_manifest
from pera_lightning.checkpoint.model_card import model_card
from pera_lightning.data.chat.as_trained import encoder_as_trained, system_prompt_as_trained
from tests.support.causal_fits import make_trainer, save_llama
from tests.support.pretrained import character_tokenizer


def write_rows(folder: Path, *prompts: str | None) -> str:
    """One row for each system message, or row without one."""
    turns = [{"role": "user", "content": "say a"}, {"role": "assistant", "content": "a"}]
    rows = [[{"role": "system", "content": text}, *turns] if text else turns for text in prompts]
    (folder / "rows.jsonl").write_text("\n".join(json.dumps({"messages": row}) for row in rows))
    return str(folder / "rows.jsonl")


def read(folder: Path, *prompts: str | None, default: str | None = None) -> dict[str, Any]:
    data = InstructionDataModule(write_rows(folder, *prompts), system_prompt=default, tokenizer=character_tokenizer())
    data.setup("fit")
    return data.chat_options


def test_the_message_of_all_rows_is_that_of_the_answers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = InstructionDataModule(write_rows(tmp_path, "be a pirate", "be a pirate"), batch_size=1)
    trainer = make_trainer(tmp_path, PeraCallback(rank=2, adapter_dir=str(tmp_path / "adapter")))
    with caplog.at_level(logging.INFO):
        trainer.fit(PeraCausalLM(save_llama(tmp_path / "model"), learning_rate=0.01), data)
    assert "all rows have the system message 'be a pirate', which the adapter's folder keeps" in caplog.text
    trained = read_manifest(tmp_path / "adapter" / "adapter_config.json").chat
    assert trained == {"system_prompt": "be a pirate", "use_chat_template": True}
    encoder = encoder_as_trained(character_tokenizer(), trained, max_length=999)
    assert "be a pirate" in character_tokenizer().decode(encoder.encode_prompt([{"role": "user", "content": "a"}]))
    assert "| system prompt | be a pirate |" in (tmp_path / "adapter" / "README.md").read_text()


@pytest.mark.parametrize(
    ("prompts", "default", "kept"),
    [
        (("x", "x"), "y", {"system_prompt": "x"}),
        ((None, "x"), "x", {"system_prompt": "x"}),
        ((None, None), "x", {"system_prompt": "x"}),
        ((None, None), "", {"system_prompt": ""}),
        ((None, None), None, {"system_prompt": None}),
        # A text that one row has is nobody else's matter.
        (("x", "y"), None, {"system_prompt": None, "different_system_prompts": 2}),
        ((None, None, "x"), None, {"system_prompt": None, "different_system_prompts": 2}),
        (
            ("z", "x", "x", None),
            "y",
            {"system_prompt": "y", "different_system_prompts": 3, "most_frequent_system_prompt": "x"},
        ),
    ],
)
def test_what_is_kept(tmp_path: Path, prompts: tuple[str | None, ...], default: str | None, kept: Any) -> None:
    assert read(tmp_path, *prompts, default=default) == {"use_chat_template": True, **kept}
    model = nn.Sequential(nn.Linear(4, 4))
    inject_adapter(model, PeraConfig(2))
    assert Manifest.from_dict(manifest_of(model, chat=kept).to_dict()).chat == kept


def test_different_messages_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        trained = read(tmp_path, "x", "y", "x")
    assert "rows have 2 different system messages (2 of 3: 'x')" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert system_prompt_as_trained(trained, None) is None
    [line] = caplog.messages
    assert line.endswith("the chat template's own is taken. Another one: --system_prompt; the most frequent one is 'x'")
    caplog.clear()
    assert system_prompt_as_trained(trained, "y") == "y"
    assert system_prompt_as_trained(trained, "") is None
    assert system_prompt_as_trained({"system_prompt": ""}, None) == ""
    assert not caplog.messages


def test_cards_name_it() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    inject_adapter(model, PeraConfig(2))
    several = {"system_prompt": "y", "different_system_prompts": 3, "use_chat_template": False}
    card = model_card(manifest_of(model, chat=several), 1, {})
    assert "| system prompt | 3 different ones in training, else: y |" in card
    assert "| prompt template | headings (### User:, ### Assistant:) |" in card
