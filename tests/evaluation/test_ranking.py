"""Log-likelihoods from shared prompts against one row at a time, and how many tokens go through the model."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pera_lightning import PeraConfig, inject_adapter, merge_adapter
from pera_lightning.data.examples import Example
from pera_lightning.errors import ConfigError
from pera_lightning.evaluation import evaluate_commonsense
from pera_lightning.evaluation.prompt_cache import empty_cache, keeps_prompts, rows_of
from pera_lightning.evaluation.ranking import log_likelihoods
from tests.support.commonsense import OPTIONS, question, write_commonsense
from tests.support.models import randomise_adapter, tiny_gpt2, tiny_llama
from tests.support.pretrained import character_tokenizer

PAD = 0
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def adapted() -> Any:
    model = tiny_llama(initializer_range=0.3)
    inject_adapter(model, PeraConfig(rank=2))
    randomise_adapter(model)
    return model


def of_type(kind: str, **options: object) -> Callable[[], Any]:
    def make() -> Any:
        from transformers import AutoConfig, AutoModelForCausalLM

        settings = {"vocab_size": 64, "initializer_range": 0.3, "pad_token_id": PAD, **SIZES, **options}
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings)).eval()

    return make


# What each has of its own: learned positions, a window shorter than the prompts, distances in place of positions,
# positions counted from the attention mask, positions that begin after the padding token.
SHARING = {
    "llama": lambda: tiny_llama(initializer_range=0.3),
    "adapted": adapted,
    "merged": lambda: merge_adapter(adapted()),
    "gpt2": tiny_gpt2,
    "mistral": of_type("mistral", sliding_window=4, intermediate_size=48, num_key_value_heads=2),
    "bloom": of_type("bloom", n_layer=2, n_head=4),
    "opt": of_type("opt", ffn_dim=48, word_embed_proj_dim=32, init_std=0.3),
    "roberta": of_type("roberta", is_decoder=True, intermediate_size=48),
}
OTHERS = {
    "mamba": of_type("mamba"),  # a state in place of keys and values, and no `past_key_values`
    "openai-gpt": of_type("openai-gpt", n_embd=32, n_layer=2, n_head=4),  # takes a cache and leaves it empty
    "recurrent_gemma": of_type("recurrent_gemma", lru_width=32, intermediate_size=96, num_key_value_heads=1),
}


def example(prompt: Sequence[int], answer: Sequence[int]) -> Example:
    return Example([*prompt, *answer], [*[-100] * len(prompt), *answer])


def ragged() -> list[list[Example]]:
    """Prompts of different lengths, with two to four answers of different lengths."""
    numbers = torch.Generator().manual_seed(3)

    def ids(length: int) -> list[int]:
        return torch.randint(3, 64, (length,), generator=numbers).tolist()

    questions = []
    for length, answers in [(9, (3, 1)), (4, (2, 2, 2)), (23, (1, 4, 2, 2)), (1, (2, 3)), (10, (5, 5)), (4, (6,))]:
        prompt, start = ids(length), ids(2)
        questions.append([example(prompt, [*start, *ids(count)]) for count in answers])
    one, other = ids(5), ids(7)
    questions.append([example(one, [9, 8]), example(one, [9, 8, 7])])  # an answer that begins with the other
    questions.append([example(one[:-1], [5, 9]), example([*one[:-1], 6], [5])])  # prompts that end differently
    questions.append([example([4, *one], [9]), example([5, *other], [9])])  # nothing in common
    return questions


def expected(model: Any, questions: list[list[Example]]) -> list[list[float]]:
    """The definition: one row at a time, without a cache."""

    def score(row: Example) -> float:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row.input_ids]), use_cache=False).logits
        steps = logits[0].double().log_softmax(-1)
        labels = enumerate(row.labels)
        return sum(steps[position - 1, label].item() for position, label in labels if label != -100)

    return [[score(row) for row in rows] for rows in questions]


@contextmanager
def batches_seen(model: Any) -> Iterator[list[tuple[int, int]]]:
    """Shapes of the ids that go through the model, but for the one token of `keeps_prompts`."""
    shapes: list[tuple[int, int]] = []

    def note(module: Any, inputs: tuple[Tensor, ...]) -> None:
        shapes.append(tuple(inputs[0].shape))

    hook = model.get_input_embeddings().register_forward_pre_hook(note)
    try:
        yield shapes
    finally:
        hook.remove()
        assert shapes.pop(0) == (1, 1)


def tokens(shapes: list[tuple[int, int]]) -> int:
    return sum(rows * length for rows, length in shapes)


def flat(nested: list[list[float]]) -> list[float]:
    return list(itertools.chain.from_iterable(nested))


@pytest.mark.parametrize("name", [*SHARING, *OTHERS])
def test_equals_one_row_at_a_time(name: str) -> None:
    model = {**SHARING, **OTHERS}[name]()
    assert keeps_prompts(model, PAD) is (name in SHARING)
    questions = ragged()
    slow = expected(model, questions)
    assert max(flat(slow)) - min(flat(slow)) > 1
    for batch_size in (1, 3, 100):
        with batches_seen(model) as shapes:
            found = log_likelihoods(model, questions, batch_size=batch_size, pad_id=PAD)
        assert [len(rows) for rows in found] == [len(rows) for rows in questions]
        assert flat(found) == pytest.approx(flat(slow), abs=2e-4)
        assert max(rows for rows, _ in shapes) <= batch_size


def test_what_is_shared_goes_through_the_model_once() -> None:
    model: Any = tiny_llama()
    prompt = list(range(3, 23))
    answers = [[30, 31, 40, 2], [30, 31, 41, 42, 2], [30, 31, 43, 2]]
    with batches_seen(model) as shapes:
        log_likelihoods(model, [[example(prompt, answer) for answer in answers]], batch_size=8, pad_id=PAD)
    # 20 and [30, 31]; then [40], [41, 42] and [43] in a batch: the last token of a row predicts nothing.
    assert shapes == [(1, 22), (3, 2)]
    with batches_seen(model) as shapes:
        log_likelihoods(model, [[example(prompt, answer) for answer in answers]], batch_size=2, pad_id=PAD)
    assert shapes == [(1, 22), (2, 2), (1, 2)]


def test_one_different_token_needs_no_second_pass() -> None:
    model: Any = tiny_llama()
    questions = [[example([start, 5, 6], [30, last]) for last in (40, 41, 42)] for start in (7, 8)]
    with batches_seen(model) as shapes:
        found = log_likelihoods(model, questions, batch_size=6, pad_id=PAD)
    assert shapes == [(2, 4)]
    assert flat(found) == pytest.approx(flat(expected(model, questions)), abs=1e-4)


def test_questions_are_joined_where_it_costs_little() -> None:
    model: Any = tiny_llama()
    lengths = [20, 40, 21]
    questions = [[example(list(range(3, 3 + length)), [last, 2]) for last in (50, 51)] for length in lengths]
    with batches_seen(model) as shapes:
        log_likelihoods(model, questions, batch_size=8, pad_id=PAD)
    # 40 with 21 would put 19 tokens more through the model for each of two answers.
    assert shapes == [(1, 40), (2, 1), (2, 20), (4, 2)]


def test_questions_are_joined_although_their_answers_are_long() -> None:
    model: Any = tiny_llama()
    questions = [[example([start, 5], [last, *range(10, 20)]) for last in (50, 51)] for start in (3, 4)]
    with batches_seen(model) as shapes:
        log_likelihoods(model, questions, batch_size=4, pad_id=PAD)
    assert shapes == [(2, 2), (4, 10)]


def test_models_that_share_nothing_see_whole_rows_in_batches() -> None:
    model = OTHERS["mamba"]()
    questions = [[example([7] * length, [last, 2]) for last in (50, 51)] for length in (3, 30, 7)]
    with batches_seen(model) as shapes:
        log_likelihoods(model, questions, batch_size=4, pad_id=PAD)
    assert shapes == [(4, 31), (2, 4)]


def test_tokens_of_the_commonsense_tasks(tmp_path: Path) -> None:
    model: Any = tiny_llama()
    folder = write_commonsense(tmp_path / "tasks", rows=1)
    tokenizer = character_tokenizer()
    at_once, one_by_one = 0, 0
    for task, options in OPTIONS.items():
        prompt = (
            "Below is an instruction that describes a task. Write a response that appropriately completes the "
            f"request.\n\n### Instruction:\n{question(task, 0)['instruction']}\n\n### Response:\n"
        )
        same = {"boolq": ""}.get(task, options[0][:-1])
        shared = len(tokenizer(prompt + "the correct answer is " + same)["input_ids"])
        rest = max(len(option) - len(same) for option in options)
        at_once += 1 + shared + len(options) * rest
        one_by_one += len(options) * (shared + rest + 1)
    total = 0

    def note(module: Any, inputs: tuple[Tensor, ...]) -> None:
        nonlocal total
        total += inputs[0].numel()

    model.get_input_embeddings().register_forward_pre_hook(note)
    evaluate_commonsense(model, tokenizer, folder, how="rank")
    assert total == at_once
    assert one_by_one > 3 * at_once


def test_outputs_that_are_not_numbers_choose_nothing() -> None:
    model = tiny_gpt2()
    with torch.no_grad():
        model.transformer.ln_f.weight[0] = float("nan")
    with pytest.raises(ConfigError, match=r"are not numbers[\s\S]*of [1-4] answers"):
        log_likelihoods(model, ragged(), batch_size=3, pad_id=PAD, advance=lambda count: None)


def test_advances_by_every_example() -> None:
    counts: list[int] = []
    questions = ragged()
    log_likelihoods(tiny_gpt2(), questions, batch_size=3, pad_id=PAD, advance=counts.append)
    assert sum(counts) == sum(map(len, questions))
    assert len(counts) > 1


def test_rows_of_a_cache_leave_it_as_it_is() -> None:
    model = SHARING["mistral"]()
    cache = empty_cache(model)
    with torch.inference_mode():
        model(input_ids=torch.tensor([[3, 4, 5], [6, 7, 8]]), past_key_values=cache)
        before = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]
        chosen = rows_of(cache, torch.tensor([1, 1, 0]))
        assert torch.equal(chosen.layers[0].keys, cache.layers[0].keys[[1, 1, 0]])
        model(input_ids=torch.tensor([[9, 9], [9, 9], [9, 9]]), past_key_values=chosen)
    assert (cache.get_seq_length(), chosen.get_seq_length()) == (3, 5)
    for layer, (keys, values) in zip(cache.layers, before, strict=True):
        assert torch.equal(layer.keys, keys)
        assert torch.equal(layer.values, values)
