"""`generate`, `chat` and `diff`."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from pera_lightning import PeraConfig, inject_adapter, merge_adapter, save_adapter
from pera_lightning.evaluation import answerer
from pera_lightning.injection import adapted_layers
from tests.cli.test_main import run
from tests.support.models import randomise_adapter
from tests.support.pretrained import save_pretrained


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model and adapters for it: two of one form, and one of another rank on fewer layers."""
    folder = tmp_path_factory.mktemp("answers")
    torch.manual_seed(0)
    save_pretrained(folder / "model")
    for name, options in (("first", {}), ("second", {}), ("other", {"rank": 2, "target_modules": ["q_proj"]})):
        model = AutoModelForCausalLM.from_pretrained(folder / "model")
        inject_adapter(model, PeraConfig(**{"rank": 3, **options}))
        randomise_adapter(model)
        save_adapter(model, folder / name, base_model="model")
    return folder


WORDS = ("--adapter", "first", "--max_new_tokens", 4)


def test_merged_answers_are_the_same(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = run("generate", "--prompt", "say a", *WORDS, folder=project).splitlines()[-1]
    merged_models = []

    def record(model: nn.Module) -> nn.Module:
        merged_models.append(merge_adapter(model))
        return model

    monkeypatch.setattr(answerer, "merge_adapter", record)
    merged = run("generate", "--prompt", "say a", "--merged", "true", *WORDS, folder=project).splitlines()[-1]
    assert plain == merged
    assert len(merged_models) == 1


def test_a_seeded_draw(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hot = (*WORDS, "--temperature", 5, "--top_p", 0.9, "--top_k", 40, "--seed")

    def drawn(seed: int) -> str:
        return run("generate", "--prompt", "say a", *hot, seed, folder=project).splitlines()[-1]

    assert drawn(1) == drawn(1)
    assert len({drawn(seed) for seed in range(3)}) > 1
    assert "seed does nothing" in run("generate", "--prompt", "a", "--seed", 1, *WORDS, folder=project, ok=False)
    monkeypatch.setattr("sys.stdin", io.StringIO("say a\n\n"))
    assert drawn(1).strip() in run("chat", *hot, 1, folder=project)


def test_side_by_side(project: Path) -> None:
    words = ("generate", "--prompt", "say a", *WORDS)
    adapted = run(*words, folder=project).splitlines()[-1]
    base = run(*words, "--without_adapter", "true", folder=project).splitlines()[-1]
    assert adapted != base
    table = run(*words, "--compare", "true", folder=project)
    [row] = [line for line in table.splitlines() if line.startswith("│")]
    assert [cell.strip() for cell in row.strip("│").split("│")] == [base.strip(), adapted.strip()]


@pytest.mark.parametrize(
    "options",
    [
        ("--compare", "true", "--merged", "true"),
        ("--compare", "true", "--without_adapter", "true"),
        ("--merged", "true", "--without_adapter", "true"),
    ],
)
def test_options_that_contradict_each_other(project: Path, options: tuple[str, ...]) -> None:
    printed = run("generate", "--prompt", "say a", *WORDS, *options, folder=project, ok=False)
    assert "leave one out" in printed


def test_an_answer_has_a_token(project: Path) -> None:
    words = ("--adapter", "first", "--prompt", "say a", "--max_new_tokens", -1)
    assert "max_new_tokens cannot have this value" in run("generate", *words, folder=project, ok=False)


def test_chat_keeps_the_conversation(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("say a\nsay b\n\nnever read\n"))
    asked: list[list[str]] = []
    from pera_lightning.evaluation.answerer import Answerer

    answer = Answerer.answer

    def record(self: Answerer, messages: list[dict[str, str]], *, stream: bool = False) -> str:
        asked.append([message["content"] for message in messages])
        return answer(self, messages, stream=stream)

    monkeypatch.setattr(Answerer, "answer", record)
    printed = run("chat", *WORDS, folder=project)
    first = run("generate", "--prompt", "say a", *WORDS, folder=project).splitlines()[-1]
    assert [turn[0] for turn in asked[:2]] == ["say a", "say a"]
    assert asked[1][1:] == [asked[1][1], "say b"]
    assert asked[1][1].strip() == first.strip()
    assert printed.count("> ") == 3
    assert first.strip() in printed


def test_diff(project: Path) -> None:
    printed = run("diff", "first", "second", folder=project)
    [total] = [line.split() for line in printed.splitlines() if line.startswith("all layers")]
    weights = []
    for name in ("first", "second"):
        model = AutoModelForCausalLM.from_pretrained(project / "model")
        from pera_lightning import load_adapter

        load_adapter(model, project / name)
        changes = [layer.delta_weight().detach().flatten() for _, layer in adapted_layers(model)]
        weights.append(torch.cat(changes).double())
    cosine = torch.cosine_similarity(*weights, dim=0).item()
    assert float(total[2]) == pytest.approx(cosine, abs=6e-4)
    assert float(total[3]) == pytest.approx(weights[0].norm().item(), rel=6e-3)
    # What explains the numbers stands before them.
    assert printed.index("options: the same") < printed.index("all layers")
    same = run("diff", "first", "first", folder=project)
    assert "1.000" in same


def test_diff_of_other_forms(project: Path) -> None:
    printed = run("diff", "first", "other", folder=project)
    assert "options: " in printed
    assert "the same" not in printed
    assert "(only in first)" in printed
    assert "no such adapter" in run("diff", "first", "nowhere", folder=project, ok=False)


def test_diff_without_a_common_layer(project: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(project / "model")
    inject_adapter(model, PeraConfig(2, target_modules=["v_proj"]))
    save_adapter(model, project / "values")
    printed = run("diff", "other", "values", folder=project, ok=False)
    assert "no layer in common" in printed
    assert "other with 'model.layers.0.self_attn.q_proj'" in printed


def test_a_template_that_cannot_serve_is_told_in_words_of_the_command(project: Path, tmp_path: Path) -> None:
    shutil.copytree(project / "model", tmp_path / "model")
    (tmp_path / "model/chat_template.jinja").write_text("{% for _ in range(9) %}{{ nothing.at.all }}{% endfor %}")
    printed = run("generate", "--prompt", "a", *WORDS, "--base", tmp_path / "model", folder=project, ok=False)
    assert "chat template cannot be used." in printed
    assert "--use_chat_template false" in printed
