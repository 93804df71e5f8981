"""Where the answers are is known before a batch goes to a GPU, so that no training step has to ask it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pera_lightning import PeraCallback, PeraCausalLM, PeraSequenceClassifier
from pera_lightning.errors import DataError
from pera_lightning.models import optimization
from pera_lightning.models.answer_loss import answer_logits, answer_loss, chunked_answer_loss
from pera_lightning.models.answer_places import COLUMNS, PLACES, with_answer_places
from tests.support.causal_fits import loader, make_trainer, save_llama, unequal_batches
from tests.support.models import tiny_bert_classifier, tiny_llama, token_ids
from tests.support.pretrained import save_pretrained
from tests.support.synchronisation import NoWaiting, WithoutWaiting, treat_as_asynchronous


def batch_of() -> dict[str, Tensor]:
    """Rows with answers of different lengths at different places."""
    ids = token_ids(3, 9)
    labels = ids.clone()
    labels[:, :4] = -100
    labels[1, 6:] = -100
    labels[:, 7] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def test_the_tokens_that_predict_an_answer() -> None:
    batch = batch_of()
    found = with_answer_places(batch)
    expected = [(row, t - 1) for row in range(3) for t in range(1, 9) if batch["labels"][row, t] != -100]
    assert found[PLACES].tolist() == [row * 9 + t for row, t in expected]
    assert found[COLUMNS].tolist() == sorted({t for _, t in expected}) == [3, 4, 5, 7]
    assert found.keys() - batch.keys() == {PLACES, COLUMNS}
    assert all(found[name] is value for name, value in batch.items())


def test_what_was_found_is_not_looked_for_again() -> None:
    found = with_answer_places(batch_of())
    model = tiny_llama(attn_implementation="eager").requires_grad_(False)
    expected = answer_loss(model(found["input_ids"]).logits[:, :-1], found["labels"][:, 1:])
    with NoWaiting():
        chunked, whole = chunked_answer_loss(model, found), answer_loss(*answer_logits(model, found))
    torch.testing.assert_close(chunked, expected)
    torch.testing.assert_close(whole, expected)
    with NoWaiting(), pytest.raises(AssertionError, match="nonzero"):
        chunked_answer_loss(model, batch_of())


def test_the_places_lie_where_the_batch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """In pinned memory, if the batch is; here there is none."""
    pinned: list[Tensor] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    with_answer_places(batch_of())
    assert not pinned
    monkeypatch.setattr(Tensor, "is_pinned", lambda self: True)
    found = with_answer_places(batch_of())
    assert [id(value) for value in pinned] == [id(found[PLACES]), id(found[COLUMNS])]


def test_no_answer_anywhere() -> None:
    batch = batch_of()
    batch["labels"][:, 1:] = -100
    with pytest.raises(DataError, match="3 rows of 9 tokens, all of them labelled -100"):
        with_answer_places(batch)


class Data(pl.LightningDataModule):
    """Lightning warns of modules with hooks of their own beside one."""

    def train_dataloader(self) -> DataLoader:
        return loader(unequal_batches())

    val_dataloader = train_dataloader


@pytest.mark.parametrize("head", [(), ("lm_head",)])
def test_a_step_of_the_language_model_waits_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: tuple[str, ...]
) -> None:
    monkeypatch.setattr(optimization, "FUSING", {"cpu"})
    watch = WithoutWaiting()
    treat_as_asynchronous(monkeypatch, watch.mode)
    # transformers itself asks whether anything is padded, but for its plain causal attention.
    module = PeraCausalLM(save_llama(tmp_path / "llama"), attn_implementation="eager", warmup_ratio=0.5)
    trainer = make_trainer(tmp_path, PeraCallback(rank=2, modules_to_save=head), watch)
    trainer.fit(module, datamodule=Data())
    assert watch.batches == trainer.global_step == 2


def test_a_step_of_the_classifier_waits_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimization, "FUSING", {"cpu"})
    watch = WithoutWaiting()
    treat_as_asynchronous(monkeypatch, watch.mode)
    folder = save_pretrained(tmp_path / "bert", tiny_bert_classifier())
    module = PeraSequenceClassifier(folder, num_labels=2, attn_implementation="eager")
    # transformers itself asks whether anything is padded, where there is a mask.
    batches: list[dict[str, Any]] = [{"input_ids": token_ids(4, 6), "labels": torch.tensor([0, 1, 1, 0])}]
    trainer = make_trainer(tmp_path, PeraCallback(rank=2), watch)
    trainer.fit(module, loader(batches), loader(batches))
    assert watch.batches == trainer.global_step == 1
