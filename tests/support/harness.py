"""A stand-in for lm-eval: its names of tasks and the shape of its results, as version 0.4.13 gives them."""

from __future__ import annotations

import sys
from fnmatch import fnmatchcase
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


class Task(SimpleNamespace):
    """A task; `requests` are none of its own."""


class TaskManager:
    """Knows a few tasks, a group and a tag."""

    def __init__(self, include_path: str | None = None) -> None:
        self.include_path = include_path
        self.tasks = {
            "piqa": Task(),
            "gsm8k": Task(),
            "mmlu_law": Task(),
            "mmlu_physics": Task(),
            "humaneval": Task(UNSAFE_CODE=True),
            "mmmu": Task(MULTIMODAL=True),
        }
        self.members = {"mmlu": ["mmlu_law", "mmlu_physics"], "a_tag": ["piqa", "gsm8k"]}
        self.all_tasks = sorted([*self.tasks, *self.members, "far_away"])

    def match_tasks(self, names: list[str]) -> list[str]:
        return [task for name in names for task in self.all_tasks if fnmatchcase(task, name)]

    def load(self, names: list[str]) -> dict[str, Any]:
        [name] = names
        if name == "far_away":
            raise ConnectionError("Couldn't reach\nthe hub")
        tasks = {leaf: self.tasks[leaf] for leaf in self.members.get(name, names)}
        return {"tasks": tasks, "groups": {"mmlu": "the group"} if name == "mmlu" else {}}


class HFLM:
    """Keeps its options."""

    def __init__(self, **options: Any) -> None:
        self.options = options


def results() -> dict[str, Any]:
    """Of `piqa`, of `gsm8k` with two filters, of a perplexity, and of a group."""
    metrics = {
        "piqa": {"alias": "piqa", "sample_len": 4, "acc,none": 0.75, "acc_stderr,none": 0.25, "acc_norm,none": 0.5}
        | {"acc_norm_stderr,none": 0.28},
        "gsm8k": {"exact_match,strict": 0.25, "exact_match_stderr,strict": 0.1, "exact_match,flexible": 0.5},
        "wiki": {"word_perplexity,none": 12.5, "word_perplexity_stderr,none": "N/A"},
        "mmlu": {"alias": "mmlu", "acc,none": 0.6, "acc_stderr,none": float("nan")},
    }
    metrics["gsm8k"]["exact_match_stderr,flexible"] = 0.1
    counts = {"piqa": 4, "gsm8k": 8, "wiki": 2}
    return {
        "results": metrics,
        "groups": {"mmlu": metrics["mmlu"]},
        "n-samples": {task: {"original": 100, "effective": count} for task, count in counts.items()},
        "n-shot": {"piqa": 0, "gsm8k": 5, "wiki": 0},
        "samples": {"piqa": [{"doc_id": 0, "acc": 1.0, "target": {1}}], "gsm8k": [], "wiki": []},
        "lm_eval_version": "0.4.13",
    }


def install(patch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Put the stand-in in lm-eval's place; returns what `simple_evaluate` is called with."""
    calls: list[dict[str, Any]] = []

    def simple_evaluate(model: HFLM, **options: Any) -> dict[str, Any]:
        calls.append({"model": model, **options})
        return results()

    parts = {
        "lm_eval": {"simple_evaluate": simple_evaluate},
        "lm_eval.tasks": {"TaskManager": TaskManager},
        "lm_eval.models": {},
        "lm_eval.models.huggingface": {"HFLM": HFLM},
    }
    for name, contents in parts.items():
        module = ModuleType(name)
        vars(module).update(contents)
        patch.setitem(sys.modules, name, module)
    return calls
