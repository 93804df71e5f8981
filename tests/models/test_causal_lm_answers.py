"""What PeraCausalLM measures of answers, and the answers that it shows."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import RichProgressBar
from torch import Tensor

from pera_lightning.models.causal_lm import PeraCausalLM
from pera_lightning.models.generation import generate_samples
from tests.support.causal_fits import QUESTIONS, loader, make_trainer, save_llama, unequal_batches
from tests.support.pretrained import character_tokenizer, padded_batch

# Lightning's remark about fits without validation.
pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no:UserWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_llama(tmp_path_factory.mktemp("pretrained"))


@pytest.fixture(scope="module")
def batches() -> list[dict[str, Tensor]]:
    return unequal_batches()


def test_says_when_answers_are_too_long_to_be_generated(
    tmp_path: Path, folder: str, batches: list[dict[str, Tensor]]
) -> None:
    # The longest answer has 9 tokens and an end.
    module = PeraCausalLM(folder, generate_in_test=True, max_new_tokens=8)
    with pytest.warns(UserWarning, match="longer than max_new_tokens=8"):
        make_trainer(tmp_path).test(module, loader(batches), verbose=False)


@pytest.mark.parametrize("stage", ["val", "test"])
def test_metrics_are_those_of_all_answer_tokens(
    tmp_path: Path, folder: str, batches: list[dict[str, Tensor]], stage: str
) -> None:
    module = PeraCausalLM(folder)
    trainer = make_trainer(tmp_path)
    run = trainer.validate if stage == "val" else trainer.test
    results = run(module, loader(batches), verbose=False)[0]
    losses, hits = [], []
    for batch in batches:
        with torch.no_grad():
            logits = module.model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        targets = batch["labels"][:, 1:]
        labelled = targets != -100
        losses.append(F.cross_entropy(logits[labelled], targets[labelled], reduction="none"))
        hits.append((logits.argmax(-1) == targets)[labelled].float())
    loss = torch.cat(losses).mean().item()
    assert losses[0].mean().item() != pytest.approx(loss, rel=1e-4)
    assert results == {
        f"{stage}_loss": pytest.approx(loss, rel=1e-5),
        f"{stage}_perplexity": pytest.approx(math.exp(loss), rel=1e-5),
        f"{stage}_token_accuracy": pytest.approx(torch.cat(hits).mean().item(), rel=1e-5),
    }


def test_metrics_start_afresh_every_epoch(tmp_path: Path, folder: str, batches: list[dict[str, Tensor]]) -> None:
    module = PeraCausalLM(folder)
    trainer = make_trainer(tmp_path)
    first = trainer.validate(module, loader(batches), verbose=False)
    trainer.validate(module, loader(batches[:1]), verbose=False)
    assert trainer.validate(module, loader(batches), verbose=False) == first


@pytest.mark.parametrize("progress_bar", [False, True])
def test_learns_answers_and_shows_them(
    tmp_path: Path,
    folder: str,
    batches: list[dict[str, Tensor]],
    capsys: pytest.CaptureFixture[str],
    progress_bar: bool,
) -> None:
    module = PeraCausalLM(
        folder, learning_rate=0.005, generate_in_validation=True, generate_in_test=True, max_new_tokens=12
    )
    callbacks = [RichProgressBar()] if progress_bar else []
    trainer = make_trainer(
        tmp_path, *callbacks, max_epochs=80, check_val_every_n_epoch=80, enable_progress_bar=progress_bar
    )
    before = trainer.validate(module, loader(batches), verbose=False)[0]["val_exact_match"]
    capsys.readouterr()
    trainer.fit(module, loader(batches), loader(batches))
    assert before == 0.0
    assert trainer.callback_metrics["val_exact_match"] == 1.0
    printed = capsys.readouterr().out
    # 4 samples, of which 3 are shown; in the sanity check and after the last epoch.
    assert "Validation samples at step 160" in printed
    assert "gamma [1]" in printed
    assert "delta" not in printed
    assert trainer.test(module, loader(batches), verbose=False)[0]["test_exact_match"] == 1.0
    assert "Test samples at step 160" in capsys.readouterr().out
    predicted = trainer.predict(module, loader(batches))
    assert predicted == [["alpha"], ["beta", "gamma [1]", "delta {2}"]]
    prompts_only = {name: batches[0][name][:, : len("aaaaa? ")] for name in ("input_ids", "attention_mask")}
    assert trainer.predict(module, loader([prompts_only])) == [["alpha"]]


def test_generates_only_when_asked(
    tmp_path: Path, folder: str, batches: list[dict[str, Tensor]], capsys: pytest.CaptureFixture[str]
) -> None:
    module = PeraCausalLM(folder, generate_in_test=True, max_new_tokens=9, printed_samples=1)
    trainer = make_trainer(tmp_path)
    assert "val_exact_match" not in trainer.validate(module, loader(batches), verbose=False)[0]
    assert "samples" not in capsys.readouterr().out
    assert trainer.test(module, loader(batches), verbose=False)[0]["test_exact_match"] == 0.0
    printed = capsys.readouterr().out
    assert "aaaaa?" in printed
    assert "bbb?" not in printed


def test_rows_without_an_answer_are_not_generated(tmp_path: Path, folder: str) -> None:
    batch = padded_batch(character_tokenizer(), QUESTIONS)
    batch["labels"][1:] = -100
    module = PeraCausalLM(folder, generate_in_test=True, max_new_tokens=8, printed_samples=9)
    make_trainer(tmp_path).test(module, loader([batch]), verbose=False)
    assert module.test_metrics.exact_match.weight == 0  # reset after the epoch
    module.test_metrics.exact_match.reset()
    samples = generate_samples(module.model, module.tokenizer, batch, 8)
    assert [sample.expected for sample in samples] == ["alpha"]
