"""The examples of a plain PyTorch loop and of the Trainer of transformers, on a tiny model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, DataCollatorForSeq2Seq, Trainer, TrainingArguments

from pera_lightning import PeraConfig, adapter_state_dict, inject_adapter, load_adapter, quantize_model
from tests.conftest import ROOT
from tests.support.models import tiny_llama
from tests.support.pretrained import character_tokenizer, padded_batch, save_pretrained
from tests.support.quantized import bits, same_bits

sys.path.insert(0, str(ROOT / "examples"))

import hf_trainer
import plain_pytorch
from spoken_requests import read_requests

STEPS = 8
HALF = STEPS // 2


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments that name a tiny model and tiny data."""
    folder = tmp_path_factory.mktemp("inputs")
    torch.manual_seed(0)
    save_pretrained(folder / "model", tiny_llama(max_position_embeddings=128))
    for split in ("train", "val", "test"):
        rows = [{"prompt": f"take {i % 7}", "completion": f"{i % 7}{i % 7}"} for i in range(40)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--model", str(folder / "model"), "--data", str(folder), "--steps", str(STEPS), "--learning-rate", "0.02"]


@pytest.fixture(scope="module")
def trained(inputs: list[str], tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    return hf_trainer.main([*inputs, "--out", str(tmp_path_factory.mktemp("run"))])


def fresh_base(inputs: list[str]) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(inputs[1], dtype=torch.float32)


def logged(trainer: Trainer, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def assert_same_adapter(one: nn.Module, other: nn.Module) -> None:
    first, second = adapter_state_dict(one), adapter_state_dict(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=0)


def assert_only_the_adapter_changed(model: nn.Module, base: nn.Module) -> None:
    before = base.state_dict()
    adapter = adapter_state_dict(model)
    rest = {name.replace("base_layer.", ""): value for name, value in model.state_dict().items() if name not in adapter}
    assert rest.keys() == before.keys()
    for name, value in rest.items():
        assert torch.equal(value, before[name]), name
    assert all(value.any() for value in adapter.values())


def test_only_the_answer_has_labels(tmp_path: Path) -> None:
    tokenizer = character_tokenizer()
    (tmp_path / "rows.jsonl").write_text('{"prompt": "ab", "completion": "cd"}\n' * 3)
    rows = read_requests(tmp_path / "rows.jsonl", tokenizer, 2)
    assert len(rows) == 2
    expected = padded_batch(tokenizer, [("<turn>system:Call a tool.<end>\n<turn>user:ab<end>\n<turn>assistant:", "cd")])
    answer = [token for token in rows[0]["labels"] if token != -100]
    assert rows[0]["input_ids"][: expected["input_ids"].shape[1]] == expected["input_ids"][0].tolist()
    assert tokenizer.decode(answer) == "cd<end>\n"


def test_plain_loop(inputs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = plain_pytorch.main([*inputs, "--out", str(tmp_path / "adapter")])
    assert result.adapted_loss < 0.98 * result.base_loss
    assert result.reload_difference == 0
    assert result.merge_difference < 1e-5
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert "step   1: loss" in capsys.readouterr().out


def test_plain_loop_changes_the_adapter_alone(inputs: list[str]) -> None:
    model = fresh_base(inputs)
    inject_adapter(model, PeraConfig(2))
    tokenizer = character_tokenizer()
    rows = read_requests(Path(inputs[3]) / "train.jsonl", tokenizer, 8)
    plain_pytorch.train(model, DataLoader(rows, 2, collate_fn=DataCollatorForSeq2Seq(tokenizer)), 0.02)
    assert_only_the_adapter_changed(model, fresh_base(inputs))


def test_trainer_learns_and_changes_the_adapter_alone(inputs: list[str], trained: Trainer) -> None:
    assert logged(trained, "test_loss")[-1] < 0.98 * logged(trained, "base_loss")[-1]
    assert_only_the_adapter_changed(trained.model, fresh_base(inputs))


def test_trainer_checkpoints_hold_the_adapter_alone(inputs: list[str], trained: Trainer) -> None:
    out = Path(trained.args.output_dir)
    for step in (HALF, STEPS):
        files = {path.name for path in (out / f"checkpoint-{step}").iterdir()}
        assert {"adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json"} <= files
        assert "model.safetensors" not in files
    model = fresh_base(inputs)
    load_adapter(model, out / f"checkpoint-{STEPS}")
    assert_same_adapter(model, trained.model)
    # Loudly: of peft, where it is installed, or of transformers.
    with pytest.raises((KeyError, OSError), match=r"PERA|config\.json"):
        AutoModelForCausalLM.from_pretrained(out / f"checkpoint-{STEPS}")


def test_trainer_resumes_to_the_same_bits(inputs: list[str], trained: Trainer, tmp_path: Path) -> None:
    checkpoint = Path(trained.args.output_dir) / f"checkpoint-{HALF}"
    resumed = hf_trainer.main([*inputs, "--out", str(tmp_path), "--resume", str(checkpoint)])
    assert not (tmp_path / f"checkpoint-{HALF}").exists()
    assert_same_adapter(resumed.model, trained.model)


def test_trainer_brings_back_the_best(inputs: list[str], trained: Trainer) -> None:
    model = fresh_base(inputs)
    load_adapter(model, Path(trained.args.output_dir) / f"checkpoint-{HALF}")
    other = hf_trainer.AdapterTrainer(model, TrainingArguments(use_cpu=True, report_to="none"))
    other.state.best_model_checkpoint = trained.state.best_model_checkpoint
    other._load_best_model()
    assert trained.state.best_global_step == STEPS
    assert_same_adapter(model, trained.model)


@pytest.mark.parametrize("option", ["--gradient-checkpointing", "--bf16"])
def test_trainer_options(option: str, inputs: list[str], trained: Trainer, tmp_path: Path) -> None:
    other = hf_trainer.main([*inputs, "--out", str(tmp_path), option])
    assert {value.dtype for value in adapter_state_dict(other.model).values()} == {torch.float32}
    assert logged(other, "test_loss")[-1] == pytest.approx(logged(trained, "test_loss")[-1], rel=1e-2)
    if option == "--gradient-checkpointing":
        assert other.model.model.layers[0].gradient_checkpointing
        assert_same_adapter(other.model, trained.model)
    else:
        with pytest.raises(AssertionError):
            assert_same_adapter(other.model, trained.model)


def test_trainer_over_a_quantised_base(inputs: list[str], tmp_path: Path) -> None:
    tokenizer = character_tokenizer()
    rows = read_requests(Path(inputs[3]) / "train.jsonl", tokenizer, 8)
    arguments = TrainingArguments(str(tmp_path), max_steps=2, learning_rate=0.02, use_cpu=True, report_to="none")

    def trainer_of(model: nn.Module) -> Trainer:
        inject_adapter(model, PeraConfig(2))
        collate = DataCollatorForSeq2Seq(tokenizer)
        return hf_trainer.AdapterTrainer(model, arguments, data_collator=collate, train_dataset=rows)

    model = fresh_base(inputs)
    quantize_model(model, "nf4")
    before = bits(model)
    trainer_of(model).train()
    assert all(value.any() for value in adapter_state_dict(model).values())
    after = {name.replace("base_layer.", ""): value for name, value in bits(model).items()}
    assert same_bits(before, after)

    config = BitsAndBytesConfig(load_in_4bit=True)
    marked = AutoModelForCausalLM.from_pretrained(inputs[1], dtype=torch.float32, quantization_config=config)
    with pytest.raises(ValueError, match="purely quantized"):
        trainer_of(marked)


def test_trainer_refuses_fsdp_before_it_trains(inputs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    create = Trainer.create_accelerator_and_postprocess

    def with_fsdp(trainer: Trainer) -> None:
        create(trainer)
        trainer.is_fsdp_enabled = True

    monkeypatch.setattr(Trainer, "create_accelerator_and_postprocess", with_fsdp)
    with pytest.raises(NotImplementedError, match="FSDP"):
        hf_trainer.AdapterTrainer(fresh_base(inputs), TrainingArguments(use_cpu=True, report_to="none"))


def test_the_trainers_own_checkpoints_hold_the_base(inputs: list[str], tmp_path: Path) -> None:
    """Why the example brings a Trainer of its own."""
    model = fresh_base(inputs)
    inject_adapter(model, PeraConfig(2))
    Trainer(model, TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")).save_model()
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert "model.layers.0.self_attn.q_proj.weight" in info["missing_keys"]
    assert any(name.endswith("base_layer.weight") for name in info["unexpected_keys"])
    base: dict[str, Any] = fresh_base(inputs).state_dict()
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(loaded.state_dict()[name], base[name])


@pytest.mark.parametrize("example", [plain_pytorch, hf_trainer])
def test_help(example: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        example.main(["--help"])
    assert stopped.value.code == 0
    assert "--steps" in capsys.readouterr().out
