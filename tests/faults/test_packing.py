"""Packed rows mix in models that do not build their mask from `position_ids`, and no batch may hide it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pera_lightning import PeraCallback
from pera_lightning.data.instruction import InstructionDataModule
from pera_lightning.errors import ConfigError
from pera_lightning.models.causal_lm import PeraCausalLM
from tests.support.causal_fits import loader, make_trainer
from tests.support.pretrained import save_pretrained
from tests.support.processes import run_script
from tests.support.transformers_models import class_of_transformers

pytestmark = pytest.mark.filterwarnings(
    "ignore:You defined a `validation_step` but have no:UserWarning",
    "ignore:.*flex_attention called without torch.compile",
)
SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "bos_token_id": 1, "eos_token_id": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48}
LINEAR = {f"linear_{size}": 8 for size in ("key_head_dim", "value_head_dim")}
LINEAR |= {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
MIXING: dict[str, dict[str, Any]] = {
    "OPT": {**SIZES, "num_attention_heads": 4, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "Falcon": {**SIZES, "num_attention_heads": 4},
    "Bloom": {**SIZES, "n_head": 4},
    "Mpt": {"vocab_size": 64, "d_model": 32, "n_layers": 2, "n_heads": 4},
    "Mamba": {**SIZES, "state_size": 8},
    "FalconMamba": {**SIZES, "state_size": 8},
    "Mamba2": {**SIZES, "num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 8},
    "Jamba": {**SIZES, **HEADS, **EXPERTS, "mamba_d_state": 8, "attn_layer_period": 2, "attn_layer_offset": 1},
    "Qwen3Next": {
        **SIZES,
        **HEADS,
        **LINEAR,
        **EXPERTS,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "GptOss": {**SIZES, **HEADS, "num_local_experts": 4, "num_experts_per_tok": 2},
    "XGLM": {"vocab_size": 64, "d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48},
}


def mixing(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:

    torch.manual_seed(0)
    config = class_of_transformers(f"{name}Config")(**MIXING[name])
    return class_of_transformers(f"{name}ForCausalLM")(config).to(dtype)


def packed(*rows: list[int]) -> dict[str, Tensor]:
    ids = torch.tensor([[token for row in rows for token in row]])
    positions = torch.tensor([[place for row in rows for place in range(len(row))]])
    return {"input_ids": ids, "position_ids": positions, "labels": ids.masked_fill(positions == 0, -100)}


def padded(*rows: list[int]) -> dict[str, Tensor]:
    ids = torch.tensor(rows)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


ROWS = [[7, 9, 11, 13, 15], [8, 10, 12, 14, 16, 18, 20]]
EQUAL = [[7] * 4, [7] * 4, *ROWS]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MIXING)
def test_a_fit_refuses_before_it_learns(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    module = PeraCausalLM(save_pretrained(tmp_path, mixing(name, dtype)))
    trainer = make_trainer(tmp_path, PeraCallback(rank=2, target_modules="all-linear"))
    with pytest.raises(ConfigError, match=r"mixes rows that stand end to end.*\n.*differ by .* and change by"):
        trainer.fit(module, loader([packed(*ROWS)]))
    assert module.global_step == 0


@pytest.mark.parametrize(
    "first",
    [packed(*EQUAL), packed([7, 9]), packed(ROWS[1]), packed(*([row] for row in range(7, 12)))],
    ids=["equal tokens", "two tokens", "one row", "rows of one token"],
)
@pytest.mark.parametrize("name", ["Falcon", "OPT"])
def test_no_first_batch_hides_it(name: str, first: dict[str, Tensor], tmp_path: Path) -> None:
    first["labels"] = first["input_ids"].clone()
    module = PeraCausalLM(save_pretrained(tmp_path, mixing(name)))
    with pytest.raises(ConfigError, match="mixes rows that stand end to end"):
        make_trainer(tmp_path).fit(module, loader([first, packed(*ROWS)]))
    assert module.global_step == 0


def _validate(trainer: Any, module: PeraCausalLM) -> None:
    trainer.validate(module, loader([packed(*ROWS)]), verbose=False)


def _test(trainer: Any, module: PeraCausalLM) -> None:
    trainer.test(module, loader([packed(*ROWS)]), verbose=False)


def _fit(trainer: Any, module: PeraCausalLM) -> None:
    trainer.fit(module, loader([padded(ROWS[0])]), loader([packed(*ROWS)]))


@pytest.mark.parametrize("run", [_validate, _test, _fit])
def test_packed_rows_in_validation_and_test(run: Callable[[Any, PeraCausalLM], None], tmp_path: Path) -> None:
    module = PeraCausalLM(save_pretrained(tmp_path, mixing("OPT")))
    with pytest.raises(ConfigError, match="mixes rows that stand end to end"):
        run(make_trainer(tmp_path), module)
    assert module.global_step == 0


@pytest.mark.parametrize("how", ["packing", "padding_free"])
def test_data_that_lays_rows_end_to_end(how: str, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a? ", "completion": "b"}\n' * 4, encoding="utf-8")
    folder = save_pretrained(tmp_path / "model", mixing("Qwen3Next"))
    module = PeraCausalLM(folder)
    data = InstructionDataModule(str(rows), max_length=32, **{how: True})
    with pytest.raises(ConfigError, match=rf"Qwen3NextForCausalLM(.*\n)+.*{how}: false"):
        make_trainer(tmp_path).fit(module, data)
    assert module.global_step == 0


def test_strategies_that_shard_the_model(tmp_path: Path) -> None:
    """Every process asks the same, in parts of the model: all of them go on, or all of them refuse."""
    save_pretrained(tmp_path / "keeping")
    save_pretrained(tmp_path / "mixing", mixing("OPT"))
    rows = [{"instruction": f"say {letter}", "input": "", "output": letter * 5} for letter in "abcdefgh"]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    run_script("tests.support.packed_processes", tmp_path, processes=2)
    for rank in range(2):
        for name, found in torch.load(tmp_path / f"{rank}.pt", weights_only=True).items():
            torch.testing.assert_close(found["packed"], found["padded"], rtol=1e-5, atol=1e-5, msg=name)
            if found["mixing"]:
                assert "mixes rows that stand end to end" in found["mixing"]["refusal"], name
                assert found["mixing"]["steps"] == 0
