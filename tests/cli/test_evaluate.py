"""`evaluate`: with an adapter, merged, and a plain model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pera_lightning import PeraConfig, inject_adapter, save_adapter
from pera_lightning.cli.commands import TOOLS
from pera_lightning.layers import PeraLinear
from tests.cli.test_main import run
from tests.support.commonsense import OPTIONS, write_commonsense
from tests.support.harness import install
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


def test_names_of_the_eight_tasks(project: Path) -> None:
    words = ("--tasks", "piqa, boolq", "--data", "tasks", "--base", "model", "--how", "rank", "--out", "two")
    printed = run("evaluate", *words, folder=project)
    assert list(json.loads((project / "two/results.json").read_text())["tasks"]) == ["boolq", "piqa"]
    assert "winogrande" not in printed


@pytest.mark.parametrize("template", [None, "chat"])
def test_names_of_the_harness(project: Path, template: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = install(monkeypatch)
    words = ("--adapter", "adapter", "--limit", 2, "--batch_size", 3, "--out", f"h{template}")
    given = () if template is None else ("--template", template)
    printed = run("evaluate", "--tasks", "piqa,gsm8k", *words, *given, folder=project)
    [call] = calls
    assert call["limit"] == 2
    assert call["apply_chat_template"] == (template == "chat")
    assert call["model"].options["batch_size"] == 3
    assert isinstance(call["model"].options["pretrained"].model.layers[0].mlp.up_proj, PeraLinear)
    assert "exact_match (flexible)" in printed
    found = json.loads((project / f"h{template}/results.json").read_text())
    assert found["how"] == "lm-eval 0.4.13"
    assert found["adapter"] == "adapter"
    assert found["tasks"]["piqa"]["accuracy"] == 0.75


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("piqqa",), "did you mean piqa?"),
        (("task",), "did you mean tasks?"),
        (("piqa", "--how", "rank"), "--how would do nothing"),
        (("piqa", "--num_beams", "4"), "--num_beams would do nothing"),
        (("piqa", "--template", "alpaca"), "--template would do nothing"),
        (("piqa", "--include_path", "nowhere"), "does not exist"),
        # Before the model, which is not there, is looked for.
        (("far_away", "--base", "x/nowhere"), "Couldn't reach the hub"),
        (("piqa", "--out", "model"), "The folder is not ours"),
        (("piqa", "--data", "nowhere"), "does not exist"),
        (("piqqa", "--data", "tasks"), "did you mean piqa?"),
        (("gsm8k", "--data", "tasks"), "named without --data"),
        (("piqa", "--data", "model"), "does not exist"),
        (("tasks", "--data", "tasks"), "--data would do nothing"),
        (("tasks", "--include_path", "tasks"), "--include_path would do nothing"),
        (("piqa", "--data", "tasks", "--include_path", "tasks"), "--include_path would do nothing"),
        (("./tusks",), "did you mean tasks?"),
    ],
)
def test_what_names_are_not_taken(
    project: Path, words: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch)
    assert message in run("evaluate", "--base", "model", "--tasks", *words, folder=project, ok=False)


@pytest.mark.parametrize(
    ("tasks", "messages"),
    [
        ("gsm8k", ["lm-eval, which is not installed", 'pip install "lm_eval[hf]"']),
        ("piqa,gsm8k", ['pip install "lm_eval[hf]"', "--data FOLDER with <task>/test.json for piqa"]),
        ("hellaswagg", ["did you mean hellaswag?"]),
        ("task", ["did you mean tasks?"]),
    ],
)
def test_names_without_the_harness(
    project: Path, tasks: str, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    printed = run("evaluate", "--base", "nowhere/at-all", "--tasks", tasks, folder=project, ok=False)
    assert all(message in printed for message in messages), printed


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
