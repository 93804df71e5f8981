"""`evaluate`: with an adapter, merged, and a plain model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pera_lightning import PeraConfig, inject_adapter, save_adapter
from pera_lightning.cli.commands import TOOLS
from tests.cli.test_main import run
from tests.support.commonsense import OPTIONS, write_commonsense
from tests.support.models import randomise_adapter, tiny_llama
from tests.support.pretrained import save_pretrained


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    torch.manual_seed(0)
    save_pretrained(folder / "model", tiny_llama(initializer_range=0.3))
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    inject_adapter(model, PeraConfig(rank=2))
    randomise_adapter(model)
    save_adapter(model, folder / "adapter", base_model="model")
    write_commonsense(folder / "tasks", rows=2)
    return folder


def evaluate(project: Path, out: str, *words: object) -> tuple[str, dict[str, Any], list[dict[str, Any]]]:
    printed = run("evaluate", "--tasks", "tasks", "--out", out, *words, folder=project)
    rows = [json.loads(line) for task in OPTIONS for line in (project / out / f"{task}.jsonl").read_text().splitlines()]
    return printed, json.loads((project / out / "results.json").read_text()), rows


def test_adapter_merged_and_plain(project: Path) -> None:
    printed, results, adapted = evaluate(project, "a", "--adapter", "adapter", "--how", "rank", "--limit", 1)
    assert results["adapter"] == "adapter"
    assert results["how"] == "rank"
    assert [row["questions"] for row in results["tasks"].values()] == [1] * 8
    for task, row in results["tasks"].items():
        [line] = [line for line in printed.splitlines() if f" {task} " in line and "│" in line]
        assert f"{100 * row['accuracy']:.1f}" in line
    assert f"{100 * results['mean']['accuracy']:.1f}" in printed
    words = ("--how", "rank", "--limit", 1)
    _, _, merged = evaluate(project, "m", "--adapter", "adapter", "--merged", "true", *words)
    _, _, plain = evaluate(project, "p", "--base", "model", *words)
    for left, right in zip(adapted, merged, strict=True):
        assert left["log_likelihoods"] == pytest.approx(right["log_likelihoods"], rel=1e-4)
    assert plain != adapted


def test_generation(project: Path) -> None:
    words = ("--adapter", "adapter", "--max_new_tokens", 3, "--num_beams", 2, "--batch_size", 2, "--limit", 1)
    _, results, rows = evaluate(project, "g", *words)
    assert results["num_beams"] == 2
    assert all(isinstance(row["generated"], str) for row in rows)
    assert results["tasks"]["piqa"]["no_answer"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "There is nothing to evaluate"),
        (("--base", "model", "--merged", "true"), "nothing to merge"),
        # Before the model, which is not there, is looked for.
        (("--base", "nowhere", "--out", "tasks/piqa/test.json/out"), "which is a file"),
        (("--base", "nowhere", "--out", "model"), "The folder is not ours"),
    ],
)
def test_refusals(project: Path, words: tuple[str, ...], message: str) -> None:
    assert message in run("evaluate", "--tasks", "tasks", *words, folder=project, ok=False)


def test_is_a_tool() -> None:
    assert "evaluate" in TOOLS
