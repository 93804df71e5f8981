"""Answers of a language model to the commonsense tasks, by generation or by ranking the options."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from pera_lightning.data.chat.conversations import Conversation
from pera_lightning.data.chat.prompts import ChatEncoder
from pera_lightning.data.commonsense import Template, commonsense_encoder
from pera_lightning.data.examples import Example
from pera_lightning.data.option_errors import check_at_least_one, check_choice
from pera_lightning.evaluation.extraction import extract_answer
from pera_lightning.evaluation.questions import Question, read_tasks
from pera_lightning.evaluation.ranking import best_option, log_likelihoods
from pera_lightning.evaluation.results import Evaluation, Prediction
from pera_lightning.models.evaluation_mode import evaluation_mode
from pera_lightning.models.generation import generate_answers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

How = Literal["generate", "rank"]
Advance = Callable[[int], None]

ANSWER = "the correct answer is {option}"
"""The sentence in which every row of LLM-Adapters gives its answer."""
# Test questions are never cut, as in LLM-Adapters; training ones are, at CommonsenseDataModule's max_length.
_NO_LIMIT = 1_000_000


def evaluate_commonsense(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: str | Path,
    *,
    names: Sequence[str] | None = None,
    how: How = "generate",
    template: Template = "alpaca",
    system_prompt: str | None = None,
    limit: int | None = None,
    batch_size: int = 16,
    num_beams: int = 1,
    max_new_tokens: int = 32,
    progress: bool = False,
) -> Evaluation:
    """Evaluate a model, adapted, merged or plain, on the test sets of a folder.

    "generate" lets the model write and takes the first option that it names (the papers' way). "rank" takes the option
    whose sentence "the correct answer is ..." has the highest log-likelihood, summed over its tokens and its end of
    turn; of equal ones the first. It needs no sampling and always answers. Tokens that all options of a question begin
    with go through the model once.

    Args:
        model: A causal language model on its device. Its train or eval mode is as before afterwards.
        tokenizer: Its tokenizer, with a pad token.
        tasks: Folder with `<task>/test.json` for one or more of the eight tasks.
        names: Which of them; by default those whose test set is there.
        how: "generate" or "rank".
        template: How a question becomes a prompt, as in training: "alpaca" or "chat".
        system_prompt: System message of the training, for the chat template.
        limit: Most questions of a task, from the beginning of its file.
        batch_size: Questions generated for, or options ranked, at a time.
        num_beams: Beams of generation (the papers: 4); 1 is greedy decoding.
        max_new_tokens: Longest generated answer, in tokens.
        progress: Show a progress bar.

    Raises:
        ConfigError: An option has a value it cannot have.
        DataError: There is no test set in the folder, or a row cannot be used.
    """
    check_choice("how", how, How)
    check_choice("template", template, Template)
    for name, value in {"limit": limit, "batch_size": batch_size, "num_beams": num_beams}.items():
        check_at_least_one(name, value)
    check_at_least_one("max_new_tokens", max_new_tokens)
    questions = read_tasks(tasks, limit, names)
    encoder = commonsense_encoder(tokenizer, template=template, max_length=_NO_LIMIT, system_prompt=system_prompt)

    def answer(rows: Sequence[Question], advance: Advance) -> list[Prediction]:
        if how == "rank":
            return _rank(model, tokenizer, encoder, rows, batch_size, advance)
        return _generate(model, tokenizer, encoder, rows, batch_size, num_beams, max_new_tokens, advance)

    start = time.perf_counter()
    with evaluation_mode(model), _bars(questions, how, hidden=not progress) as bars:
        predictions = {task: answer(rows, bars[task]) for task, rows in questions.items()}
    return Evaluation(how, predictions, time.perf_counter() - start)


def _rank(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoder: ChatEncoder,
    questions: Sequence[Question],
    batch_size: int,
    advance: Advance,
) -> list[Prediction]:
    def example(question: Question, option: str) -> Example:
        answer = {"role": "assistant", "content": ANSWER.format(option=option)}
        return encoder.encode(Conversation("evaluation", [*question.messages, answer]))[0]

    examples = [[example(question, option) for option in question.options] for question in questions]
    pad_id = encoder.stop_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    scores = log_likelihoods(model, examples, batch_size=batch_size, pad_id=pad_id, advance=advance)
    return [
        Prediction(
            question.text,
            question.answer,
            question.options[best_option(own)],
            log_likelihoods=dict(zip(question.options, own, strict=True)),
        )
        for question, own in zip(questions, scores, strict=True)
    ]


def _generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoder: ChatEncoder,
    questions: Sequence[Question],
    batch_size: int,
    num_beams: int,
    max_new_tokens: int,
    advance: Advance,
) -> list[Prediction]:
    prompts = [torch.tensor(encoder.encode_prompt(question.messages)) for question in questions]
    # Longest first: what does not fit into memory shows at once.
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True)
    texts = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        batch = [prompts[index] for index in indices]
        for index, text in zip(
            indices, generate_answers(model, tokenizer, batch, max_new_tokens, num_beams=num_beams), strict=True
        ):
            texts[index] = text
        advance(len(indices))
    return [
        Prediction(question.text, question.answer, extract_answer(text, question.options), generated=text)
        for question, text in zip(questions, texts, strict=True)
    ]


@contextmanager
def _bars(questions: Mapping[str, Sequence[Question]], how: How, *, hidden: bool) -> Iterator[dict[str, Advance]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=hidden) as progress:

        def bar(task: str, rows: Sequence[Question]) -> Advance:
            total = sum(len(question.options) for question in rows) if how == "rank" else len(rows)
            identity = progress.add_task(task, total=total)
            return lambda count: progress.advance(identity, count)

        yield {task: bar(task, rows) for task, rows in questions.items()}
