"""Training without whole logits: when it is right, and that it changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pera_lightning import PeraCallback, PeraConfig, inject_adapter
from pera_lightning.errors import DataError
from pera_lightning.functional import cross_entropy
from pera_lightning.models import causal_lm
from pera_lightning.models.answer_loss import (
    answer_logits,
    answer_loss,
    chunked_answer_loss,
    ends_in_frozen_head,
)
from pera_lightning.models.causal_lm import PeraCausalLM
from tests.support.models import randomise_adapter, tiny_gpt2, tiny_llama, token_ids
from tests.support.pretrained import character_tokenizer, padded_batch, save_pretrained


def batch_of(rows: int = 3, length: int = 9) -> dict[str, Tensor]:
    """Rows with answers of different lengths at different places."""
    ids = token_ids(rows, length)
    labels = ids.clone()
    labels[:, :4] = -100
    labels[1, 6:] = -100
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("chunk", [64, 1 << 23])
@pytest.mark.parametrize("tokens", [None, [5, 9, 63]])
def test_equals_the_loss_on_whole_logits(
    monkeypatch: pytest.MonkeyPatch, make: object, chunk: int, tokens: list[int] | None
) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK", chunk)
    model = make()
    inject_adapter(model, PeraConfig(2, trainable_tokens=tokens))
    randomise_adapter(model)
    batch = batch_of()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert ends_in_frozen_head(model)
    loss, expected = chunked_answer_loss(model, batch), answer_loss(*answer_logits(model, batch))
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    found = torch.autograd.grad(loss, trained)
    for actual, right in zip(found, torch.autograd.grad(expected, trained), strict=True):
        torch.testing.assert_close(actual, right, rtol=1e-4, atol=1e-6)


def test_a_batch_without_answers_is_refused() -> None:
    batch = batch_of()
    batch["labels"].fill_(-100)
    with pytest.raises(DataError, match="no answer"):
        chunked_answer_loss(tiny_llama().requires_grad_(False), batch)


def capped() -> nn.Module:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    model = Gemma2ForCausalLM(Gemma2Config(**sizes, num_attention_heads=4, num_key_value_heads=2)).eval()
    # Its logits are all zero, on which a cap does not show.
    torch.nn.init.zeros_(model.get_output_embeddings().weight)
    return model


def scaled() -> nn.Module:
    from transformers import GraniteConfig, GraniteForCausalLM

    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    return GraniteForCausalLM(GraniteConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, logits_scaling=3.0))


def trained_head() -> nn.Module:
    model = tiny_llama().requires_grad_(False)
    model.lm_head.weight.requires_grad_()
    return model


def adapted_head() -> nn.Module:
    model = tiny_llama()
    inject_adapter(model, PeraConfig(2, target_modules=["q_proj", "lm_head"]))
    return model


def merged_rows() -> nn.Module:
    model = tiny_gpt2()
    inject_adapter(model, PeraConfig(2, trainable_tokens=[5]))
    model.lm_head.merge()
    return model


def hooked_below_its_rows() -> nn.Module:
    model = tiny_gpt2()
    inject_adapter(model, PeraConfig(2, trainable_tokens=[5]))
    model.lm_head.base_layer.register_forward_hook(lambda module, inputs, output: output + 1)
    return model


def compiled_in_place() -> nn.Module:
    model = tiny_llama().requires_grad_(False)
    model.compile(backend="eager")
    return model


def hooked() -> nn.Module:
    model = tiny_llama().requires_grad_(False)
    model.lm_head.register_forward_hook(lambda module, inputs, output: output + 1)
    return model


def needs_more_than_two_tokens() -> nn.Module:
    model = tiny_llama().requires_grad_(False)

    def forward(*arguments: object, **options: object) -> None:
        raise ValueError("at least three tokens")

    model.forward = forward
    return model


@pytest.mark.parametrize(
    "make",
    [
        needs_more_than_two_tokens,
        capped,
        scaled,
        trained_head,
        adapted_head,
        merged_rows,
        hooked_below_its_rows,
        compiled_in_place,
        hooked,
    ],
)
def test_whole_logits_where_there_is_more_than_a_frozen_head(make: object) -> None:
    model = make()
    if make in (capped, scaled):
        model.requires_grad_(False)
    hooks = len(model.get_output_embeddings()._forward_hooks)
    assert not ends_in_frozen_head(model)
    assert len(model.get_output_embeddings()._forward_hooks) == hooks
    assert not model.base_model._forward_hooks


def test_looking_moves_no_random_numbers() -> None:
    model = tiny_gpt2().requires_grad_(False).train()
    state = torch.get_rng_state()
    assert ends_in_frozen_head(model)
    assert torch.equal(torch.get_rng_state(), state)


class Losses(Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: object, *rest: object) -> None:
        self.values.append(outputs["loss"].item())


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no:UserWarning")
def test_a_fit_learns_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_pretrained(tmp_path / "model", tiny_llama())
    batches = [padded_batch(character_tokenizer(), [("aa? ", "beta"), ("bbb? ", "gamma")])] * 6
    loader = DataLoader(batches, batch_size=None)
    runs, calls = [], []
    chunked = causal_lm.chunked_answer_loss
    monkeypatch.setattr(causal_lm, "chunked_answer_loss", lambda *given: calls.append(1) or chunked(*given))
    for chunks in (True, False):
        if not chunks:
            monkeypatch.setattr(causal_lm, "ends_in_frozen_head", lambda model: False)
        torch.manual_seed(4)
        losses = Losses()
        options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        options["enable_model_summary"] = False
        trainer = Trainer(max_epochs=1, callbacks=[PeraCallback(2), losses], default_root_dir=tmp_path, **options)
        trainer.fit(PeraCausalLM(folder, learning_rate=0.05, schedule="constant"), loader)
        runs.append(losses.values)
    assert len(calls) == 6
    assert runs[0][-1] < runs[0][0] - 0.1
    assert runs[0] == pytest.approx(runs[1], rel=1e-4)
