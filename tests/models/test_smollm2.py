"""The main job on a real pretrained language model, end to end."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file

from pera_lightning import InstructionDataModule, PeraCallback, PeraCausalLM, load_adapter
from pera_lightning.loading.pretrained import PretrainedSource, load_causal_lm
from tests.support.trainers import cpu_trainer

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
ROWS = [("wake me at seven", '{"tool": "set_alarm", "time": "07:00"}'), ("lights off", '{"tool": "set_lights"}')]

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning"),
]


def fit(folder: Path, smollm2: Path, steps: int, ckpt_path: str | None = None) -> tuple[pl.Trainer, PeraCausalLM]:
    pl.seed_everything(0, verbose=False)
    rows = folder / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"prompt": p, "completion": c}) for p, c in ROWS * 2))
    module = PeraCausalLM(str(smollm2), gguf_file=GGUF, learning_rate=2e-3, schedule="constant")
    data = InstructionDataModule(str(rows), system_prompt="", batch_size=2, max_length=64)
    callbacks = PeraCallback(rank=4), ModelCheckpoint(folder / "checkpoints", save_last=True)
    trainer = cpu_trainer(folder, *callbacks, max_steps=steps, max_epochs=-1)
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return trainer, module


def test_trains_saves_and_resumes_on_a_real_model(tmp_path: Path, smollm2_folder: Path) -> None:
    plain = load_causal_lm(PretrainedSource(str(smollm2_folder), GGUF), dtype="auto", attn_implementation=None)
    before = copy.deepcopy(plain.state_dict())

    trainer, module = fit(tmp_path, smollm2_folder, steps=2)
    assert trainer.global_step == 2
    changed = set()
    for name, parameter in module.model.named_parameters():
        original = before.get(name.replace(".base_layer", ""))
        if original is None:
            changed.add(name.rsplit(".", 1)[-1])
        else:
            assert torch.equal(parameter, original), name
    assert changed == {"pera_A", "pera_B", "pera_h"}

    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    stored = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert len(stored) == 7 * 30 * 3
    assert all(".pera_" in key for key in stored)
    adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {f"model.{key}" for key in adapter} == set(stored)

    resumed_trainer, resumed = fit(tmp_path, smollm2_folder, steps=4, ckpt_path=str(checkpoint))
    assert resumed_trainer.global_step == 4
    name = "model.layers.0.self_attn.q_proj.pera_B"
    assert not torch.equal(resumed.model.get_parameter(name), module.model.get_parameter(name))

    load_adapter(plain, tmp_path / "adapter")
    ids = torch.tensor([[1, 4093, 198, 2683]])
    with torch.no_grad():
        assert torch.equal(plain.eval()(input_ids=ids).logits, resumed.model.eval()(input_ids=ids).logits)
