"""`lm_eval_model`: against a stand-in for lm-eval's class, and with lm-eval where it is installed.

pip install -e ".[eval]"
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from pera_lightning import PeraConfig, inject_adapter, merge_adapter
from pera_lightning.data.examples import Example
from pera_lightning.errors import ConfigError
from pera_lightning.evaluation import lm_eval_model
from pera_lightning.evaluation.ranking import best_option, log_likelihoods
from tests.conftest import NO_LM_EVAL, ROOT
from tests.support.models import randomise_adapter, tiny_llama, token_ids
from tests.support.pretrained import character_tokenizer

TIED = {
    "tokens": PeraConfig(rank=2, trainable_tokens=[5, 6]),
    "embedding": PeraConfig(rank=2, target_modules=["embed_tokens", "q_proj"]),
    "head": PeraConfig(rank=2, target_modules=["lm_head", "q_proj"]),
}


class StandIn:
    """What lm-eval 0.4.13 does to a model that it is given."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        options["pretrained"].eval()
        options["pretrained"].tie_weights()


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("lm_eval.models.huggingface")
    module.HFLM = StandIn  # type: ignore[attr-defined]
    for name in ("lm_eval", "lm_eval.models"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)


def adapted(config: PeraConfig, **options: object) -> Any:
    model = tiny_llama(initializer_range=0.3, **options)
    inject_adapter(model, config)
    randomise_adapter(model)
    return model.eval()


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("name", TIED)
def test_tied_weights_are_left_alone(name: str) -> None:
    model = adapted(TIED[name], tie_word_embeddings=True)
    ids = token_ids()
    before, weights = model(ids).logits, {key: value.data_ptr() for key, value in model.state_dict().items()}
    with pytest.raises((AttributeError, KeyError)):
        adapted(TIED[name], tie_word_embeddings=True).tie_weights()
    lm_eval_model(model, character_tokenizer())
    assert torch.equal(model(ids).logits, before)
    assert {key: value.data_ptr() for key, value in model.state_dict().items()} == weights
    assert "tie_weights" not in vars(model)


@pytest.mark.usefixtures("stand_in")
def test_options_reach_the_harness() -> None:
    model, tokenizer = tiny_llama().train(), character_tokenizer()
    made: Any = lm_eval_model(model, tokenizer, batch_size="auto", max_length=7)
    assert made.options == {"pretrained": model, "tokenizer": tokenizer, "batch_size": "auto", "max_length": 7}
    assert not model.training


def test_without_lm_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r'needs a package[\s\S]*pip install "pera-lightning\[eval\]"'):
        lm_eval_model(tiny_llama(), character_tokenizer())


ANSWERS = [" true", " five", " b.", " none"]
PROMPTS = ["is it so?\nanswer:", "which of the answers is it, and why?\nanswer:", "x"]


def scores_in_harness(folder: Path) -> None:
    """Writes what lm-eval and the project's own ranking find about the same models."""
    tokenizer = character_tokenizer()
    torch.manual_seed(0)
    models = {"adapted": adapted(PeraConfig(rank=2)), "tied": adapted(TIED["tokens"], tie_word_embeddings=True)}
    found = {name: both_scores(model, tokenizer, folder / name) for name, model in models.items()}
    merged = both_scores(merge_adapter(models["adapted"]), tokenizer, folder / "merged")
    (folder / "found.json").write_text(json.dumps({**found, "merged": merged}))


def both_scores(model: Any, tokenizer: Any, folder: Path) -> dict[str, Any]:
    from lm_eval import simple_evaluate
    from lm_eval.api.instance import Instance
    from lm_eval.tasks import TaskManager

    def example(prompt: str, answer: str) -> Example:
        ids, start = tokenizer(prompt + answer)["input_ids"], len(tokenizer(prompt)["input_ids"])
        return Example(ids, [*[-100] * start, *ids[start:]])

    own = log_likelihoods(
        model, [[example(prompt, answer) for answer in ANSWERS] for prompt in PROMPTS], batch_size=4, pad_id=0
    )
    # The model is right about all prompts but the last.
    best = [best_option(scores) for scores in own]
    best[-1] = (best[-1] + 1) % len(ANSWERS)
    folder.mkdir()
    rows = [{"prompt": prompt, "best": right} for prompt, right in zip(PROMPTS, best, strict=True)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {
        "task": "made_up",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": ANSWERS,
        "doc_to_target": "best",
        "target_delimiter": "",
    }
    harness = lm_eval_model(model, tokenizer, batch_size=4)
    requests = [Instance("loglikelihood", {}, (prompt, answer), 0) for prompt in PROMPTS for answer in ANSWERS]
    scores = [score for score, _ in harness.loglikelihood(requests)]
    # Without lm-eval's own tasks, whose files take a while to read.
    results = simple_evaluate(harness, tasks=[task], task_manager=TaskManager(include_defaults=False))
    assert results is not None
    accuracy = results["results"]["made_up"]["acc,none"]
    return {"own": [score for row in own for score in row], "harness": scores, "accuracy": accuracy}


def test_lm_eval_finds_what_the_ranking_finds(tmp_path: Path) -> None:
    if find_spec("lm_eval") is None:
        pytest.skip(NO_LM_EVAL)
    # In a process of its own, for lm-eval warns; its data sets are to stay out of the user's cache.
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found) == ["adapted", "tied", "merged"]
    for scores in found.values():
        assert len(scores["own"]) == len(PROMPTS) * len(ANSWERS)
        assert scores["harness"] == pytest.approx(scores["own"], abs=1e-3)
        assert scores["accuracy"] == pytest.approx(2 / 3)
    assert found["adapted"]["own"] != found["tied"]["own"]


if __name__ == "__main__":
    scores_in_harness(Path(sys.argv[1]))
