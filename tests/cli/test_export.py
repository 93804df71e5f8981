from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM

from pera_lightning import PeraConfig, inject_adapter, load_adapter, save_adapter
from tests.cli.test_main import run
from tests.support.models import randomise_adapter, tiny_bert_classifier, token_ids
from tests.support.pretrained import save_pretrained

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, two adapters for it, and rows."""
    folder = tmp_path_factory.mktemp("export")
    torch.manual_seed(0)
    save_pretrained(folder / "model")
    for name, options in (("adapter", {}), ("wide", {"rank": 31}), ("biases", {"bias": "all"})):
        model = AutoModelForCausalLM.from_pretrained(folder / "model", attention_bias=True)
        inject_adapter(model, PeraConfig(**{"rank": 4, **options}))
        randomise_adapter(model)
        save_adapter(model, folder / name, base_model="model")
    classifier = tiny_bert_classifier()
    save_pretrained(folder / "bert", classifier)
    inject_adapter(classifier, PeraConfig(2, modules_to_save=["classifier"]))
    randomise_adapter(classifier)
    save_adapter(classifier, folder / "classifier", base_model="bert")
    rows = [{"prompt": f"say {word}", "completion": word} for word in ("a", "b", "c", "d") * 4]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "export_report.json").read_text())


def test_to_peft(project: Path) -> None:
    printed = run("export", "--adapter", "adapter", "--out", "lora", folder=project)
    assert "LoRA of rank 14 over 14 layers, float32: exact but for rounding" in printed
    assert "loaded back by PEFT" in printed
    assert "PeftModel.from_pretrained(model, 'lora')  # model: model" in printed
    found = report(project / "lora")["certificate"]
    assert found["route"].startswith("PEFT ")
    assert found["max_difference"] < 1e-5 < found["max_change"]
    assert found["positions"] > 200
    model, ids = AutoModelForCausalLM.from_pretrained(project / "model"), token_ids()
    load_adapter(model, project / "adapter")
    plain = AutoModelForCausalLM.from_pretrained(project / "model")
    with torch.no_grad():
        expected, exported = model(ids).logits, PeftModel.from_pretrained(plain, project / "lora")(ids).logits
    torch.testing.assert_close(exported, expected, rtol=1e-5, atol=1e-5)


def test_compared_on_rows_of_the_training(project: Path) -> None:
    words = ("--rows", "rows.jsonl", "--positions", 60, "--rank", 3)
    printed = run("export", "--adapter", "adapter", "--out", "rows", *words, folder=project)
    assert "of the energy kept" in printed
    assert 60 <= report(project / "rows")["certificate"]["positions"] < 120


def test_to_vllm(project: Path) -> None:
    printed = run("export", "--adapter", "adapter", "--out", "served", "--to", "vllm", folder=project)
    assert printed.splitlines()[-1] == (
        "vllm serve model --enable-lora --max-lora-rank 16 --lora-modules served=served"
    )
    printed = run("export", "--adapter", "wide", "--out", "x", "--to", "vllm", folder=project, ok=False)
    assert "rank 527" in printed
    assert "--rank 512" in printed
    printed = run("export", "--adapter", "biases", "--out", "x", "--to", "vllm", folder=project, ok=False)
    assert "trained biases" in printed
    assert not (project / "x").exists()


def test_to_llama_cpp(project: Path) -> None:
    printed = run("export", "--adapter", "adapter", "--out", "gguf", "--to", "llamacpp", folder=project)
    assert "--lora gguf/adapter.gguf" in printed
    found = report(project / "gguf")["certificate"]
    assert found["max_difference"] < 1e-5 < found["max_change"]
    words = ("--check", "false", "--dtype", "float16", "--rank", 2)
    run("export", "--adapter", "adapter", "--out", "small", "--to", "llamacpp", *words, folder=project)
    assert (project / "small/adapter.gguf").stat().st_size < (project / "gguf/adapter.gguf").stat().st_size / 4


def test_to_a_merged_model(project: Path) -> None:
    printed = run("export", "--adapter", "adapter", "--out", "merged", "--to", "merged", folder=project)
    assert printed.splitlines()[-1] == "AutoModelForCausalLM.from_pretrained('merged')"
    found = report(project / "merged")["certificate"]
    assert found["max_difference"] < 1e-4 < found["max_change"]
    assert (project / "merged/tokenizer.json").is_file()


def test_a_classifier_is_exported_without_its_model(project: Path) -> None:
    run("export", "--adapter", "classifier", "--out", "bert lora", "--check", "false", folder=project)
    assert json.loads((project / "bert lora/adapter_config.json").read_text())["task_type"] == "SEQ_CLS"


@pytest.mark.parametrize(("form", "route"), [("peft", "PEFT"), ("merged", "transformers")])
def test_a_classifier_is_compared(project: Path, form: str, route: str) -> None:
    printed = run("export", "--adapter", "classifier", "--out", f"bert {form}", "--to", form, folder=project)
    assert f"loaded back by {route}" in printed
    found = report(project / f"bert {form}")["certificate"]
    assert found["max_difference"] < 1e-5 < found["max_change"]


def test_a_name_with_spaces_can_be_pasted(project: Path) -> None:
    (project / "my model").mkdir()
    words = ("--to", "vllm", "--check", "false", "--base", "my model")
    printed = run("export", "--adapter", "adapter", "--out", "my lora", *words, folder=project)
    assert shlex.split(printed.splitlines()[-1])[2::5] == ["my model", "my lora=my lora"]


def test_without_the_base(project: Path) -> None:
    words = ("--base", "not/there", "--check", "false", "--to", "safetensors", "--dtype", "bfloat16")
    printed = run("export", "--adapter", "adapter", "--out", "factors", *words, folder=project)
    assert "up @ down, from factors/lora_factors.safetensors" in printed
    assert report(project / "factors")["certificate"] is None


def test_what_a_user_gets_wrong(project: Path) -> None:
    for words, message in (
        (("--adapter", "nowhere", "--out", "x"), "There is no such adapter"),
        (("--adapter", ".", "--out", "x"), "name adapter"),
        (("--adapter", "adapter", "--out", "adapter"), "take the place of a PERA adapter"),
        (("--adapter", "adapter", "--out", "x", "--rows", "missing.jsonl"), "--rows missing.jsonl (from"),
        (("--adapter", "adapter", "--out", "x", "--base", "nowhere"), "nowhere"),
        (("--adapter", "adapter", "--out", "x", "--rank", "0"), "rank cannot have this value"),
        (("--adapter", "adapter", "--out", "x", "--to", "ollama"), "ollama"),
        (("--adapter", "adapter", "--out", "x", "--to", "merged", "--rank", 3), "--rank would do nothing"),
        (("--adapter", "adapter", "--out", "x", "--into", "original"), "--into would do nothing"),
        (("--adapter", "adapter", "--out", "x", "--rows", "rows.jsonl", "--check", "false"), "--rows would do nothing"),
        (("--adapter", "adapter", "--out", "x", "--to", "merged", "--base_dtype", "bfloat16"), "--base_dtype would do"),
        (("--adapter", "adapter", "--out", "model"), "place of its base model"),
        (("--adapter", "adapter", "--out", "rows.jsonl/x"), "rows.jsonl, which is a file"),
    ):
        assert message in run("export", *words, folder=project, ok=False)
    assert not (project / "x").exists()


def test_an_adapter_of_ones_own_module(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    inject_adapter(model, PeraConfig(rank=2, target_modules=["0"]))
    randomise_adapter(model)
    save_adapter(model, tmp_path / "own")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}')
    for options, words in (
        (("--rows", "rows.jsonl"), "Without a base model there is nothing to compare."),
        (("--to", "merged"), r"of a module of your own: load_adapter(model, folder), merge_adapter(model)"),
        (("--to", "llamacpp"), "The adapter does not say which base model it belongs to."),
    ):
        assert words in run("export", "--adapter", "own", "--out", "out", *options, folder=tmp_path, ok=False)
        assert not (tmp_path / "out").exists()
    printed = run("export", "--adapter", "own", "--out", "out", folder=tmp_path)
    assert "Not compared: the adapter names no base model." in printed
    assert "exact but for rounding" in printed
    assert report(tmp_path / "out")["certificate"] is None
