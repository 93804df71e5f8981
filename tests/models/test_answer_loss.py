from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pera_lightning.errors import DataError
from pera_lightning.models.answer_loss import answer_logits, answer_loss
from tests.support.models import tiny_gpt2, tiny_llama
from tests.support.pretrained import character_tokenizer, padded_batch

MODELS = pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
# Two runs of answers in a row, answers at different places, and one that starts at the second token.
ROWS = [("hello? ", "yes"), ("a", "bcdef"), ("what is the time", "12")]


class NoLogitsToKeep(nn.Module):
    """A model whose forward knows no logits_to_keep, as some from hub repositories."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool) -> Any:
        return self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)


def plain_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """All logits, one row at a time, from the definition."""
    losses = []
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        length = int(mask.sum())
        logits = model(input_ids=ids[None, :length]).logits[0].float()
        for position in range(1, length):
            if labels[position] != -100:
                losses.append(-F.log_softmax(logits[position - 1], dim=-1)[labels[position]])
    return torch.stack(losses).mean()


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.fixture
def batch() -> dict[str, Tensor]:
    batch = padded_batch(character_tokenizer(), ROWS)
    batch["labels"][2, 3:5] = batch["input_ids"][2, 3:5]
    return batch


@MODELS
@pytest.mark.parametrize("wrap", [lambda model: model, NoLogitsToKeep])
def test_padded_batch_equals_the_plain_formula(
    build: Callable[[], nn.Module], wrap: Callable[[nn.Module], nn.Module], batch: dict[str, Tensor]
) -> None:
    model = build()
    loss = answer_loss(*answer_logits(wrap(model), batch))
    expected = plain_loss(model, batch)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    for got, wanted in zip(gradients(model, loss), gradients(model, expected), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


@MODELS
@pytest.mark.parametrize("train", [False, True])
def test_packed_batch_equals_the_samples_by_themselves(
    build: Callable[[], nn.Module], train: bool, batch: dict[str, Tensor]
) -> None:
    model = build()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    expected = plain_loss(model, batch)
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    packed = {
        name: torch.cat([row[:length] for row, length in zip(batch[name], lengths, strict=True)])[None]
        for name in ("input_ids", "labels")
    }
    packed["position_ids"] = torch.cat([torch.arange(length) for length in lengths])[None]
    loss = answer_loss(*answer_logits(model.train(train), packed))
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    for got, wanted in zip(gradients(model, loss), gradients(model.eval(), expected), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


def test_logits_are_computed_only_where_a_row_needs_them(batch: dict[str, Tensor]) -> None:
    model = tiny_llama()
    seen: list[torch.Size] = []
    model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    logits, targets = answer_logits(model, batch)
    needed = {column - 1 for row in batch["labels"] for column in range(1, len(row)) if row[column] != -100}
    assert seen == [logits.shape] == [(3, len(needed), 64)]
    assert len(needed) < batch["labels"].shape[1] - 1
    assert sorted(targets[targets != -100].tolist()) == sorted(batch["labels"][batch["labels"] != -100].tolist())


def test_loss_of_half_precision_logits_is_float32() -> None:
    logits = torch.randn(2, 5, 64)
    targets = torch.randint(64, (2, 5))
    half = logits.to(torch.bfloat16)
    loss = answer_loss(half, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(half.float().flatten(0, 1), targets.flatten()))


def test_batch_without_answers(batch: dict[str, Tensor]) -> None:
    batch["labels"].fill_(-100)
    # The first token is predicted by nothing, so a label there is none.
    batch["labels"][:, 0] = 5
    with pytest.raises(DataError, match="holds no answer to learn from"):
        answer_logits(tiny_llama(), batch)
