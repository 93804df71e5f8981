"""Which rows `trainable_tokens` means, and what it must not mean."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pera_lightning import PeraConfig, inject_adapter, remove_adapter
from pera_lightning.errors import ConfigError, PeraError, TargetError
from tests.support.models import tiny_gpt2, tiny_llama, token_ids
from tests.support.module_state import Before

IDS = (5, 9, 63)


def tied() -> nn.Module:
    return tiny_llama(tie_word_embeddings=True)


def untied() -> nn.Module:
    return tiny_llama(tie_word_embeddings=False)


def test_a_tied_weight_has_one_list_whichever_module_is_named() -> None:
    for name in ("embed_tokens", "lm_head"):
        report = inject_adapter(tied(), PeraConfig(2, trainable_tokens={name: IDS}))
        assert report.tokens == {"model.embed_tokens": 3}
    model = tied()
    inject_adapter(model, PeraConfig(2, trainable_tokens={"embed_tokens": IDS, "lm_head": IDS[::-1]}))
    before = Before.of(remove_adapter(model))
    with pytest.raises(ConfigError, match="one weight twice"):
        inject_adapter(model, PeraConfig(2, trainable_tokens={"embed_tokens": IDS, "lm_head": [1]}))
    before.assert_restored(model)


class Scaled(nn.Embedding):
    """As Gemma's and BART's."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * 3


def plain_network(table: nn.Module | None = None) -> nn.Module:
    parts = {"fc": nn.Linear(4, 4), "out": nn.Linear(4, 4)}
    return nn.ModuleDict(parts if table is None else {"table": table, **parts})


WRONG: list[tuple[Callable[[], nn.Module], dict[str, object], type[PeraError], str]] = [
    (tiny_gpt2, {"trainable_tokens": [64]}, TargetError, "id 64, and 'transformer.wte' has 64 rows"),
    (tiny_gpt2, {"trainable_tokens": {"embed": [1]}}, TargetError, "embeddings of this model: .*wte"),
    (tiny_gpt2, {"trainable_tokens": {"ln_f": [1]}}, TargetError, "'ln_f', a LayerNorm"),
    (tiny_gpt2, {"trainable_tokens": {"h.0.attn.c_attn": [1]}}, TargetError, "kind Conv1D"),
    (
        tied,
        {"target_modules": ["embed_tokens", "q_proj"]},
        TargetError,
        "to be adapted or trained whole",
    ),
    (
        tied,
        {"target_modules": ["lm_head", "q_proj"]},
        TargetError,
        "'lm_head'; the weight.* of model.embed_tokens, lm_head",
    ),
    (tied, {"modules_to_save": ["lm_head"]}, TargetError, "to be adapted or trained whole"),
    (plain_network, {"trainable_tokens": [1]}, TargetError, "a model with 0 of them"),
    (
        lambda: nn.ModuleDict({"a": nn.Embedding(4, 4), "b": nn.Embedding(4, 4), "fc": nn.Linear(4, 4)}),
        {"trainable_tokens": [1]},
        TargetError,
        r"(?s)2 of them.*embeddings: a, b",
    ),
    (lambda: plain_network(Scaled(4, 4)), {"trainable_tokens": [1]}, TargetError, "'table' of kind Scaled"),
    (lambda: plain_network(nn.Embedding(4, 4, max_norm=1.0)), {"trainable_tokens": [1]}, TargetError, "max_norm"),
]


@pytest.mark.parametrize(("make", "options", "error", "words"), WRONG)
def test_refused_before_anything_is_changed(
    make: Callable[[], nn.Module], options: dict[str, object], error: type[PeraError], words: str
) -> None:
    model = make()
    before = Before.of(model)
    with pytest.raises(error, match=words):
        inject_adapter(model, PeraConfig(2, **{"trainable_tokens": IDS, **options}))
    before.assert_restored(model)


def test_an_embedding_of_a_plain_network() -> None:
    model = plain_network(nn.Embedding(4, 4))
    report = inject_adapter(model, PeraConfig(2, trainable_tokens=[0, 3]))
    assert report.tokens == {"table": 2}


def test_an_adapted_head_beside_trained_rows_of_an_untied_embedding() -> None:
    model, ids = untied(), token_ids()
    plain = model(input_ids=ids).logits
    inject_adapter(model, PeraConfig(2, target_modules=["q_proj", "lm_head"], trainable_tokens=IDS))
    assert torch.equal(model(input_ids=ids).logits, plain)
    model = untied()
    inject_adapter(model, PeraConfig(2, modules_to_save=["lm_head"], trainable_tokens=IDS))
    assert model.lm_head.weight.requires_grad
