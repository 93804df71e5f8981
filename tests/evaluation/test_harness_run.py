"""Tasks of lm-eval by name, against a stand-in; the command line with lm-eval itself where it is installed."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pera_lightning.errors import ConfigError, DataError
from pera_lightning.evaluation.harness_run import HarnessEvaluation, evaluate_harness
from pera_lightning.evaluation.harness_tasks import HarnessTasks
from pera_lightning.evaluation.results import rows_file
from tests.conftest import NO_LM_EVAL, ROOT
from tests.support.harness import install
from tests.support.models import tiny_llama
from tests.support.pretrained import character_tokenizer, save_pretrained


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    return install(monkeypatch)


@pytest.mark.usefixtures("calls")
def test_tasks_groups_tags_and_patterns() -> None:
    found = HarnessTasks(["piqa", "mmlu"], "folder")
    assert found.leaves == ["piqa", "mmlu_law", "mmlu_physics"]
    assert found.specs == [found.manager.tasks["piqa"], "the group"]
    assert found.manager.include_path == "folder"
    assert HarnessTasks(["a_tag"]).leaves == ["piqa", "gsm8k"]
    assert HarnessTasks(["mmlu_*", "mmlu_law"]).leaves == ["mmlu_law", "mmlu_physics"]


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("piqqa", ConfigError, r"no such task[\s\S]*did you mean piqa\?"),
        ("zzz", ConfigError, r"no such task[\s\S]*lm-eval ls tasks"),
        ("far_away", DataError, r"'far_away' cannot be loaded[\s\S]*ConnectionError: Couldn't reach the hub"),
        ("humaneval", ConfigError, "runs code that the model writes"),
        ("mmmu", ConfigError, "more than text"),
    ],
)
def test_what_cannot_be_run(name: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        HarnessTasks(["piqa", name])


def found_by_the_stand_in(**options: Any) -> HarnessEvaluation:
    return evaluate_harness(tiny_llama(), character_tokenizer(), HarnessTasks(["piqa"]), **options)


def test_options_reach_lm_eval(calls: list[dict[str, Any]]) -> None:
    found_by_the_stand_in(limit=3, batch_size=2, use_chat_template=True, system_prompt="be brief")
    [call] = calls
    assert call["limit"] == 3
    assert call["model"].options["batch_size"] == 2
    assert call["apply_chat_template"]
    assert call["system_instruction"] == "be brief"
    # Left at lm-eval's own, which is not to run code.
    assert not any("trust" in name or "unsafe" in name for name in (*call, *call["model"].options))
    found_by_the_stand_in()
    assert not calls[1]["apply_chat_template"]
    with pytest.raises(ConfigError, match="limit"):
        found_by_the_stand_in(limit=0)


@pytest.mark.usefixtures("calls")
def test_numbers_as_lm_eval_gives_them(tmp_path: Path) -> None:
    found = found_by_the_stand_in()
    summary = found.summary()
    assert summary["how"] == "lm-eval 0.4.13"
    assert summary["tasks"]["piqa"] == {
        "accuracy": 0.75,
        "standard_error": 0.25,
        "questions": 4,
        "shots": 0,
        "metrics": {
            "acc": {"value": 0.75, "standard_error": 0.25},
            "acc_norm": {"value": 0.5, "standard_error": 0.28},
        },
    }
    assert summary["tasks"]["gsm8k"]["accuracy"] == 0.25
    assert list(summary["tasks"]["gsm8k"]["metrics"]) == ["exact_match (strict)", "exact_match (flexible)"]
    # A perplexity is no accuracy, and stays out of the mean.
    assert summary["tasks"]["wiki"]["accuracy"] is None
    assert summary["tasks"]["wiki"]["metrics"] == {"word_perplexity": {"value": 12.5, "standard_error": None}}
    assert summary["mean"]["accuracy"] == pytest.approx((0.75 + 0.25) / 2)
    assert summary["mean"]["standard_error"] == pytest.approx(math.hypot(0.25, 0.1) / 2)
    assert summary["groups"] == {"mmlu": {"acc": {"value": 0.6, "standard_error": None}}}
    console = Console(width=120)
    with console.capture() as capture:
        console.print(found.table())
    for cells in (
        ("piqa", "acc", "0.7500", "0.2500", "4", "0"),
        ("mmlu", "acc", "0.6000", "unknown"),
        ("mean of the tasks", "0.5000"),
    ):
        assert any(all(f" {cell} " in line for cell in cells) for line in capture.get().splitlines()), cells

    found.write(tmp_path / "out", {"adapter": "mine"})
    written = json.loads((tmp_path / "out/results.json").read_text())
    assert written == {"adapter": "mine", **summary}
    assert json.loads((tmp_path / "out/piqa.jsonl").read_text()) == {"doc_id": 0, "acc": 1.0, "target": "{1}"}
    # An evaluation of ours is replaced.
    found.write(tmp_path / "out")
    assert "adapter" not in json.loads((tmp_path / "out/results.json").read_text())


def test_no_task_writes_outside_of_its_folder() -> None:
    assert rows_file("ARC-Easy") == "ARC-Easy.jsonl"
    assert rows_file("../../x y") == "_._.._x_y.jsonl"


def test_the_command_line_with_lm_eval(tmp_path: Path) -> None:
    if find_spec("lm_eval") is None:
        pytest.skip(NO_LM_EVAL)
    save_pretrained(tmp_path / "model", tiny_llama(initializer_range=0.3))
    for name, more in {
        "chosen": {"output_type": "multiple_choice", "doc_to_choice": [" yes", " no"], "doc_to_target": "best"},
        "written": {
            "output_type": "generate_until",
            "doc_to_target": "{{best}}",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 3},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        },
    }.items():
        rows = tmp_path / "rows.jsonl"
        rows.write_text("\n".join(json.dumps({"prompt": f"is {n}?", "best": n % 2}) for n in range(4)))
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(rows)}},
            "test_split": "test",
            "doc_to_text": "{{prompt}}",
            **more,
        }
        # JSON is YAML.
        (tmp_path / "tasks").mkdir(exist_ok=True)
        (tmp_path / "tasks" / f"{name}.yaml").write_text(json.dumps(task))
    words = ("--tasks", "chosen,written", "--include_path", "tasks", "--base", "model", "--limit", "3", "--out", "out")
    done = subprocess.run(
        [sys.executable, "-m", "pera_lightning", "evaluate", *words],
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": _path()},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert {task: row["questions"] for task, row in found["tasks"].items()} == {"chosen": 3, "written": 3}
    assert found["tasks"]["chosen"]["accuracy"] in (0, 1 / 3, 2 / 3, 1)
    assert list(found["tasks"]["written"]["metrics"]) == ["exact_match"]
    rows = [json.loads(line) for line in (tmp_path / "out/chosen.jsonl").read_text().splitlines()]
    assert sum(row["acc"] for row in rows) / 3 == pytest.approx(found["tasks"]["chosen"]["accuracy"])
    assert "lm-evaluation-harness" in done.stdout
    assert "already-initialized" not in done.stderr


def _path() -> str:
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
