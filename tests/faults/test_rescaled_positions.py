"""Models whose positions depend on the longest row (dynamic NTK, LongRoPE): rows changed each other without a word."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

from pera_lightning import InstructionDataModule, PeraCallback, PeraCausalLM
from pera_lightning.data.collate import lay_end_to_end
from pera_lightning.data.rescaled_positions import rescales_at
from pera_lightning.errors import ConfigError
from tests.support.causal_fits import loader, make_trainer
from tests.support.models import tiny_llama
from tests.support.pretrained import save_pretrained

pytestmark = pytest.mark.filterwarnings(
    "ignore:You defined a `validation_step` but have no:UserWarning",
    "ignore:`Trainer.fit` stopped:UserWarning",
)
FIRST, LONGER = 16, 40
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pad_token_id": 0,
    # So that attention is far from uniform.
    "initializer_range": 0.5,
}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}


def dynamic() -> LlamaForCausalLM:
    parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    return LlamaForCausalLM(LlamaConfig(**SIZES, max_position_embeddings=FIRST, rope_parameters=parameters))


def long() -> Phi3ForCausalLM:
    parameters = {**LONG, "original_max_position_embeddings": FIRST}
    return Phi3ForCausalLM(
        Phi3Config(
            **SIZES,
            max_position_embeddings=64,
            original_max_position_embeddings=FIRST,
            rope_parameters=parameters,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


MODELS = [dynamic, long]


def row(length: int) -> list[int]:
    return torch.randint(3, 64, (length,), generator=torch.Generator().manual_seed(length)).tolist()


def together(*lengths: int, packed: bool) -> dict[str, Tensor]:
    rows = [row(length) for length in lengths]
    if packed:
        return lay_end_to_end([{"input_ids": torch.tensor(ids), "labels": torch.tensor(ids)} for ids in rows])
    longest = max(lengths)
    ids = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in rows])
    mask = torch.tensor([[1] * length + [0] * (longest - length) for length in lengths])
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.where(mask == 1, -100)}


@torch.no_grad()
def change_of_the_first(model: Any, *lengths: int, packed: bool) -> float:
    """How far the logits of the first row are from those of that row alone, by transformers."""
    model.eval()
    alone = model(input_ids=torch.tensor([row(lengths[0])]), use_cache=False).logits[0]
    batch = together(*lengths, packed=packed)
    batch.pop("labels")
    found = model(**batch, use_cache=False).logits[0, : lengths[0]]
    return float((found - alone).norm() / alone.norm())


def fit(folder: Path, model: Any, *lengths: int, packed: bool) -> None:
    module = PeraCausalLM(save_pretrained(folder / "model", model), learning_rate=0.1, schedule="constant")
    batch = together(*lengths, packed=packed)
    make_trainer(folder, PeraCallback(2, skip_checks=["head"]), max_steps=1).fit(module, loader([batch]))


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("packed", [True, False])
def test_a_long_row_changes_the_others(make: Any, packed: bool, tmp_path: Path) -> None:
    assert rescales_at(make()) == FIRST
    assert change_of_the_first(make(), 9, FIRST, packed=packed) < 1e-5
    assert change_of_the_first(make(), 9, LONGER, packed=packed) > 1e-3
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "PERA: rows of")
        fit(tmp_path, make(), 9, FIRST, packed=packed)
        fit(tmp_path, make(), FIRST + 4, packed=packed)
    if packed:
        with pytest.raises(ConfigError, match=rf"a row of 40 tokens in packs, and .* more than {FIRST} tokens"):
            fit(tmp_path, make(), 9, LONGER, packed=True)
    else:
        with pytest.warns(UserWarning, match="rows of 9 and 40 tokens are in one batch, and .*ForCausalLM computes"):
            fit(tmp_path, make(), 9, LONGER, packed=False)


def test_other_models_have_no_such_length() -> None:
    assert rescales_at(tiny_llama()) is None


@pytest.mark.parametrize("option", ["packing", "padding_free"])
def test_a_data_module_refuses_before_the_first_step(option: str, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": "one", "completion": "a" * count}) + "\n" for count in (3, 30)))
    model = dynamic()
    model.resize_token_embeddings(256)
    module = PeraCausalLM(save_pretrained(tmp_path / "model", model))
    data = InstructionDataModule(
        train_files=[str(rows)], val_split=0, max_length=64, use_chat_template=False, **{option: True}
    )
    with pytest.raises(ConfigError, match=f"set max_length: {FIRST}"):
        make_trainer(tmp_path, PeraCallback(2), max_steps=1).fit(module, data)
