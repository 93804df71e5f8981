"""Rows laid end to end give the loss and the gradients of the padded batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pera_lightning import PeraConfig, inject_adapter
from pera_lightning.data.commonsense import CommonsenseDataModule
from pera_lightning.data.instruction import InstructionDataModule
from pera_lightning.models.answer_loss import answer_logits, answer_loss, chunked_answer_loss
from tests.support.models import randomise_adapter, tiny_gpt2, tiny_llama
from tests.support.pretrained import character_tokenizer


@pytest.fixture
def rows(tmp_path: Path) -> str:
    lines = [
        json.dumps({"instruction": "why " * (1 + number * 7 % 9), "output": "so" * (1 + number * 5 % 6)})
        for number in range(9)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    return str(tmp_path / "rows.jsonl")


def batches(rows: str, padding_free: bool) -> list[dict[str, Tensor]]:
    tokenizer = character_tokenizer()
    data = InstructionDataModule(rows, tokenizer=tokenizer, batch_size=4, seed=3, padding_free=padding_free)
    data.setup("fit")
    return list(data.train_dataloader())


def test_the_same_rows_without_their_padding(rows: str) -> None:
    padded, end_to_end = (batches(rows, padding_free) for padding_free in (False, True))
    assert len(padded) == len(end_to_end) == 3
    for before, after in zip(padded, end_to_end, strict=True):
        tokens = before["attention_mask"].bool()
        assert not tokens.all() or len(tokens) == 1
        assert torch.equal(after["input_ids"][0], before["input_ids"][tokens])
        assert torch.equal(after["labels"][0], before["labels"][tokens])


def loss_and_gradients(model: Any, batch: dict[str, Tensor], chunked: bool) -> tuple[Tensor, list[Tensor]]:
    model.zero_grad()
    loss = chunked_answer_loss(model, batch) if chunked else answer_loss(*answer_logits(model, batch))
    loss.backward()
    return loss.detach(), [value.grad.clone() for value in model.parameters() if value.requires_grad]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("model_of", "chunked"), [(tiny_llama, False), (tiny_llama, True), (tiny_gpt2, False)])
def test_the_same_loss_and_gradients(rows: str, model_of: Any, chunked: bool, attention: str) -> None:
    model = model_of()
    model.set_attn_implementation(attention)
    inject_adapter(model, PeraConfig(3))
    randomise_adapter(model)
    for before, after in zip(batches(rows, False), batches(rows, True), strict=True):
        expected, found = (loss_and_gradients(model, batch, chunked) for batch in (before, after))
        torch.testing.assert_close(found[0], expected[0], atol=1e-6, rtol=1e-6)
        for gradient, other in zip(found[1], expected[1], strict=True):
            torch.testing.assert_close(gradient, other, atol=1e-6, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile", "ignore::DeprecationWarning")
def test_flex_attention_gives_the_same_loss(rows: str) -> None:
    """On the CPU it has no backward pass, and is not compiled here."""
    model: Any = tiny_llama()
    model.set_attn_implementation("flex_attention")
    [before, *_], [after, *_] = batches(rows, False), batches(rows, True)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        expected, found = (answer_loss(*answer_logits(model, batch)) for batch in (before, after))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_commonsense_data_has_it_too(rows: str) -> None:
    data = CommonsenseDataModule(rows, tokenizer=character_tokenizer(), val_rows=0, padding_free=True)
    data.setup("fit")
    [batch] = data.train_dataloader()
    assert batch["input_ids"].shape[0] == 1
    assert (batch["position_ids"] == 0).sum() == 9
