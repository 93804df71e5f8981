"""`evaluate_commonsense`: both ways against calculations one row at a time, on a tiny random model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from pera_lightning import PeraConfig, adapter_disabled, inject_adapter
from pera_lightning.cli.screen import show_table
from pera_lightning.errors import ConfigError, DataError, FolderError
from pera_lightning.evaluation import Evaluation, Prediction, evaluate_commonsense
from pera_lightning.evaluation.ranking import best_option
from tests.support.commonsense import OPTIONS, question, write_commonsense, write_rows
from tests.support.models import randomise_adapter, tiny_gpt2, tiny_llama
from tests.support.pretrained import character_tokenizer

TOKENIZER = character_tokenizer()
PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_commonsense(tmp_path_factory.mktemp("data") / "commonsense", rows=2)


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return tiny_llama(initializer_range=0.3)


def log_likelihood(model: Any, prompt: str, answer: str) -> float:
    """The definition, one token after another."""
    ids, whole = TOKENIZER(prompt)["input_ids"], TOKENIZER(prompt + answer)["input_ids"]
    with torch.no_grad():
        steps = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    return sum(steps[at - 1, whole[at]].item() for at in range(len(ids), len(whole)))


@pytest.mark.parametrize("make", [lambda: tiny_llama(initializer_range=0.3), tiny_gpt2], ids=["llama", "gpt2"])
def test_log_likelihoods_are_exact_in_batches(folder: Path, make: Any) -> None:
    torch.manual_seed(0)
    model = make()
    found = evaluate_commonsense(model, TOKENIZER, folder, how="rank", batch_size=7)
    assert list(found.predictions) == list(OPTIONS)
    for task, predictions in found.predictions.items():
        for number, prediction in enumerate(predictions):
            row = question(task, number)
            prompt = PROMPT.format(**row)
            expected = {
                option: log_likelihood(model, prompt, f"the correct answer is {option}<eos>")
                for option in OPTIONS[task]
            }
            assert prediction.log_likelihoods == pytest.approx(expected, abs=1e-4)
            assert prediction.predicted == max(expected, key=lambda option: expected[option])
            assert prediction.answer == row["answer"]
            assert prediction.question == row["instruction"]


def test_the_adapter_takes_part(folder: Path) -> None:
    torch.manual_seed(0)
    model: Any = tiny_llama(initializer_range=0.3)
    plain = evaluate_commonsense(model, TOKENIZER, folder, how="rank", limit=1)
    inject_adapter(model, PeraConfig(rank=2))
    randomise_adapter(model)
    adapted = evaluate_commonsense(model, TOKENIZER, folder, how="rank", limit=1)
    with adapter_disabled(model):
        again = evaluate_commonsense(model, TOKENIZER, folder, how="rank", limit=1)
    assert plain.predictions == again.predictions != adapted.predictions


def test_generation_does_not_depend_on_the_batch(folder: Path, model: Any) -> None:
    one, many = (evaluate_commonsense(model, TOKENIZER, folder, batch_size=size, max_new_tokens=6) for size in (1, 4))
    assert one.predictions == many.predictions
    texts = [row.generated for rows in one.predictions.values() for row in rows]
    assert len(set(texts)) > 1
    assert all(row.log_likelihoods is None for rows in one.predictions.values() for row in rows)


def test_beams_are_used(folder: Path, model: Any) -> None:
    greedy, beams = (
        evaluate_commonsense(model, TOKENIZER, folder, num_beams=count, max_new_tokens=4, limit=1) for count in (1, 4)
    )
    assert greedy.predictions != beams.predictions


def test_what_is_generated_is_extracted(folder: Path, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers reach the questions they belong to, although batches are sorted by length."""
    rows = [question(task, number) for task in OPTIONS for number in range(2)]
    known = {tuple(TOKENIZER(PROMPT.format(**row))["input_ids"]): row["answer"] for row in rows}

    def parrot(model: Any, tokenizer: Any, prompts: Any, *_: Any, **__: Any) -> list[str]:
        return [f"the correct answer is {known[tuple(prompt.tolist())].upper()}." for prompt in prompts]

    monkeypatch.setattr("pera_lightning.evaluation.commonsense_run.generate_answers", parrot)
    found = evaluate_commonsense(model, TOKENIZER, folder, batch_size=2)
    assert found.mean_accuracy == 1.0


def test_the_models_mode_is_as_before(folder: Path) -> None:
    model: Any = tiny_llama()
    model.train()
    model.lm_head.eval()
    evaluate_commonsense(model, TOKENIZER, folder, how="rank", limit=1)
    assert model.training
    assert not model.lm_head.training


def test_ties_go_to_the_first() -> None:
    assert best_option([-2.0, -1.0, -1.0]) == 1
    assert best_option([0.0, 0.0]) == 0


def made_up() -> Evaluation:
    right, wrong, none = (Prediction("?", "answer1", predicted) for predicted in ("answer1", "answer2", None))
    return Evaluation("generate", {"boolq": [right, right, wrong, none], "piqa": [right, right]}, 1.5)


def test_accuracies_and_their_errors() -> None:
    found = made_up()
    assert found.accuracy("boolq") == 0.5
    assert found.error("boolq") == 0.25
    assert found.mean_accuracy == 0.75
    assert found.mean_error == pytest.approx(math.sqrt(0.25**2 + 0.0**2) / 2)


def test_of_one_question_the_error_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    some = made_up().predictions
    found = Evaluation("generate", {"boolq": some["boolq"], "piqa": some["piqa"][:1]}, 1.5)
    assert math.isnan(found.error("piqa"))
    assert math.isnan(found.mean_error)
    summary = json.loads(json.dumps(found.summary(), allow_nan=False))
    assert summary["tasks"]["piqa"]["standard_error"] is summary["mean"]["standard_error"] is None
    show_table(found.table())
    rows = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert [row[2].strip() for row in rows] == ["25.0", "unknown", "unknown"]


def test_files(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    made_up().write(out, {"adapter": "here"})
    assert {path.name for path in out.iterdir()} == {"results.json", "boolq.jsonl", "piqa.jsonl"}
    results = json.loads((out / "results.json").read_text())
    assert results["adapter"] == "here"
    assert results["mean"]["accuracy"] == 0.75
    assert results["tasks"]["boolq"] == {"accuracy": 0.5, "standard_error": 0.25, "questions": 4, "no_answer": 1}
    rows = [json.loads(line) for line in (out / "boolq.jsonl").read_text().splitlines()]
    assert [row["correct"] for row in rows] == [True, True, False, False]


def test_files_of_an_earlier_evaluation_of_more_tasks_are_gone(tmp_path: Path) -> None:
    whole = made_up()
    whole.write(tmp_path)
    (tmp_path / "notes.jsonl").write_text("mine")
    Evaluation("rank", {"piqa": whole.predictions["piqa"]}, 1.0).write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "piqa.jsonl", "notes.jsonl"}


def test_files_of_others_stay(tmp_path: Path) -> None:
    """A folder of tasks' own rows, and one of results beside which somebody keeps rows of a task."""
    (tmp_path / "theirs").mkdir()
    for name in ("boolq.jsonl", "results.json"):
        (tmp_path / "theirs" / name).write_text('{"mean": "mine"}')
    with pytest.raises(FolderError, match="The folder is not ours"):
        made_up().write(tmp_path / "theirs")
    whole = made_up()
    Evaluation("rank", {"piqa": whole.predictions["piqa"]}, 1.0).write(tmp_path / "out")
    (tmp_path / "out/boolq.jsonl").write_text("mine")
    before = (tmp_path / "out/results.json").read_bytes()
    with pytest.raises(FolderError, match=r"(?s)not ours.*out with 'boolq.jsonl'"):
        whole.write(tmp_path / "out")
    assert (tmp_path / "out/boolq.jsonl").read_text() == "mine"
    assert (tmp_path / "out/results.json").read_bytes() == before
    assert {path.read_text() for path in (tmp_path / "theirs").iterdir()} == {'{"mean": "mine"}'}
    whole.write(tmp_path / "out", overwrite=True)
    assert len((tmp_path / "out/boolq.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize("text", ["", "[]"])
def test_an_empty_test_set_is_named_before_the_model_answers(tmp_path: Path, model: Any, text: str) -> None:
    for task in ("boolq", "piqa"):
        (tmp_path / task).mkdir()
    write_rows(tmp_path / "boolq" / "test.json", [question("boolq", 0)])
    (tmp_path / "piqa" / "test.json").write_text(text)
    with pytest.raises(DataError, match=r"(?s)empty.*piqa.test\.json"):
        evaluate_commonsense(None, TOKENIZER, tmp_path)  # type: ignore[arg-type]


def test_limit_and_a_folder_of_some_tasks(tmp_path: Path, model: Any) -> None:
    (tmp_path / "piqa").mkdir()
    write_rows(tmp_path / "piqa" / "test.json", [question("piqa", number) for number in range(3)])
    found = evaluate_commonsense(model, TOKENIZER, tmp_path, how="rank", limit=2)
    assert {task: len(rows) for task, rows in found.predictions.items()} == {"piqa": 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"instruction": "please answer"}, "the options are missing"),
        ({"answer": "solution3"}, "none of the options"),
        ({"instruction": ""}, "cannot be used"),
    ],
)
def test_bad_rows(tmp_path: Path, model: Any, changes: dict[str, str], message: str) -> None:
    (tmp_path / "piqa").mkdir()
    write_rows(tmp_path / "piqa" / "test.json", [{**question("piqa", 0), **changes}])
    with pytest.raises(DataError, match=message):
        evaluate_commonsense(model, TOKENIZER, tmp_path)


@pytest.mark.parametrize("options", [{"how": "guess"}, {"limit": 0}, {"batch_size": 0}, {"num_beams": 0}])
def test_impossible_options(folder: Path, model: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        evaluate_commonsense(model, TOKENIZER, folder, **options)


def test_an_empty_folder(tmp_path: Path, model: Any) -> None:
    with pytest.raises(DataError, match="There is no test set"):
        evaluate_commonsense(model, TOKENIZER, tmp_path)
