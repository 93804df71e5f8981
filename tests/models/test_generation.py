from __future__ import annotations

import io
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from pera_lightning import PeraConfig, inject_adapter
from pera_lightning.errors import ConfigError
from pera_lightning.models.generation import (
    GenerationSample,
    generate_answers,
    sample_table,
    split_prompts,
    stop_tokens,
)
from pera_lightning.models.gradient_checkpointing import enable_gradient_checkpointing
from tests.support.models import randomise_adapter, tiny_gpt2, tiny_llama
from tests.support.pretrained import character_tokenizer, padded_batch

PROMPTS = ["a", "what is the time?", "hello {}"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return character_tokenizer()


@pytest.fixture
def prompts(tokenizer: Any) -> list[Tensor]:
    return [torch.tensor(tokenizer(prompt)["input_ids"]) for prompt in PROMPTS]


def greedy_by_hand(model: nn.Module, prompt: Tensor, steps: int, stops: list[int]) -> list[int]:
    """One row, no padding, no cache."""
    ids, answer = prompt[None], []
    with torch.no_grad():
        for _ in range(steps):
            token = int(model(input_ids=ids, use_cache=False).logits[0, -1].argmax())
            if token in stops:
                break
            answer.append(token)
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    return answer


def livelier(model: nn.Module) -> nn.Module:
    """A random model repeats one token; with larger weights it writes different ones."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return model


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_batched_answers_equal_those_by_hand(
    build: Callable[[], nn.Module], tokenizer: Any, prompts: list[Tensor]
) -> None:
    model = livelier(build())
    stops = stop_tokens(model, tokenizer)
    by_hand = [greedy_by_hand(model, prompt, 8, stops) for prompt in prompts]
    expected = [tokenizer.decode(answer, skip_special_tokens=True) for answer in by_hand]
    assert generate_answers(model, tokenizer, prompts, 8) == expected
    assert len(set(expected)) > 1


def test_answers_end_before_the_first_stop_token(tokenizer: Any, prompts: list[Tensor]) -> None:
    model = livelier(tiny_llama())
    model.generation_config.eos_token_id = None
    free = greedy_by_hand(model, prompts[0], 8, [])
    stop = next(token for token in free[1:] if token not in tokenizer.all_special_ids and token != free[0])
    model.generation_config.eos_token_id = [stop]
    expected = tokenizer.decode(free[: free.index(stop)], skip_special_tokens=True)
    assert generate_answers(model, tokenizer, prompts[:1], 8) == [expected]


@pytest.mark.parametrize("wrong", ["x", [[2]], {}, {"a": 1}, [2, "x"], [None, 1.5], True, 2**70])
def test_an_end_that_is_no_token_is_refused(wrong: Any, tokenizer: Any, prompts: list[Tensor]) -> None:
    model = tiny_llama()
    model.generation_config.eos_token_id = wrong
    with pytest.raises(ConfigError, match="names an end token that is none"):
        generate_answers(model, tokenizer, prompts, 2)


def test_stop_tokens_come_from_model_tokenizer_and_template(tokenizer: Any) -> None:
    model = tiny_llama()
    pad, bos, eos, turn, end, _ = range(6)
    assert stop_tokens(model, tokenizer) == [eos, end]
    model.generation_config.eos_token_id = [bos, turn]
    assert stop_tokens(model, tokenizer) == [bos, eos, turn, end]
    model.generation_config.eos_token_id = -1
    assert stop_tokens(model, tokenizer) == [eos, end]
    model.generation_config.eos_token_id = None
    assert stop_tokens(model, character_tokenizer(template=None)) == [eos]
    # The first special token after the answer ends it, not the last one of the text.
    template = "{% for m in messages %}{{ m['content'] + '\n<end><pad>' }}{% endfor %}"
    assert pad not in stop_tokens(model, character_tokenizer(template))
    assert end in stop_tokens(model, character_tokenizer(template))


def test_the_models_own_sampling_settings_take_no_part(
    tokenizer: Any, prompts: list[Tensor], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import GenerationConfig

    model = livelier(tiny_llama())
    expected = generate_answers(model, tokenizer, prompts, 8)
    model.generation_config = own = GenerationConfig(
        do_sample=True,
        temperature=5.0,
        top_k=5,
        top_p=0.9,
        repetition_penalty=9.0,
        max_length=30,
        min_new_tokens=8,
        eos_token_id=2,
    )
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        assert generate_answers(model, tokenizer, prompts, 8) == expected
    assert caplog.records == []
    assert model.generation_config is own


@pytest.mark.parametrize("inference_mode", [False, True])
def test_with_adapters_checkpointing_and_in_train_mode(
    tokenizer: Any,
    prompts: list[Tensor],
    inference_mode: bool,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    model = livelier(tiny_llama(attention_dropout=0.5))
    before = generate_answers(model, tokenizer, prompts, 8)
    inject_adapter(model, PeraConfig(rank=2, dropout=0.5))
    randomise_adapter(model)
    stops = stop_tokens(model, tokenizer)
    by_hand = [greedy_by_hand(model.eval(), prompt, 8, stops) for prompt in prompts]
    enable_gradient_checkpointing(model)
    model.train()
    model.lm_head.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    with torch.inference_mode(inference_mode):
        answers = generate_answers(model, tokenizer, prompts, 8)
    assert answers == [tokenizer.decode(answer, skip_special_tokens=True) for answer in by_hand]
    assert answers != before
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert caplog.records == []


def test_split_prompts(tokenizer: Any) -> None:
    batch = padded_batch(tokenizer, [("hello? ", "yes"), ("ab", "c"), ("two turns ", "more")])
    ids, labels = batch["input_ids"], batch["labels"]
    labels[2, 1:3] = ids[2, 1:3]  # an earlier answer, which belongs to the last one's prompt
    labels[1] = -100
    prompts, answers = split_prompts(batch)
    assert [tokenizer.decode(prompt) for prompt in prompts] == ["hello? ", "abc<end>", "two turns "]
    assert [tokenizer.decode(answer) for answer in answers] == ["yes<end>", "", "more<end>"]
    bare, none = split_prompts({"input_ids": ids[:1, :5]})
    assert tokenizer.decode(bare[0]) == "hello"
    assert none[0].numel() == 0


@pytest.mark.parametrize(
    ("expected", "generated", "matches"),
    [("a b", " a b\n", True), ("a b", "a  b", False), ("a", "A", False), ("", " ", True)],
)
def test_exact_match_is_up_to_outer_white_space(expected: str, generated: str, matches: bool) -> None:
    assert GenerationSample("?", expected, generated).matches is matches


def test_sample_table_shows_texts_as_they_are() -> None:
    samples = [GenerationSample("[bold]?", '{"a": ["x"]}', "[red]x"), GenerationSample("p", "q", "q ")]
    output = io.StringIO()
    Console(width=100, file=output).print(sample_table(samples, "Samples"))
    for part in ("Samples", "[bold]?", '{"a": ["x"]}', "[red]x", "yes", "no"):
        assert part in output.getvalue()
