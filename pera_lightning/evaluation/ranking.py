"""Log-likelihoods of possible answers, exact and in batches; what the answers to a question share is computed once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from pera_lightning.data.collate import PaddingCollator
from pera_lightning.data.examples import IGNORE_INDEX, Example
from pera_lightning.data.model_limits import ModelLimits
from pera_lightning.errors import ConfigError
from pera_lightning.evaluation.prompt_cache import empty_cache, keeps_prompts, rows_of
from pera_lightning.models.answer_loss import logits_at

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel


class _Group(NamedTuple):
    """Examples that begin with the same tokens.

    Args:
        examples: The examples.
        positions: Where each stands among all examples.
        shared: Tokens at the beginning that go through the model once for all of them.
    """

    examples: Sequence[Example]
    positions: Sequence[int]
    shared: int

    @property
    def longest(self) -> int:
        """Tokens of the longest example that go through the model: the last one predicts nothing."""
        return max(len(example.input_ids) for example in self.examples) - 1


def log_likelihoods(
    model: PreTrainedModel,
    questions: Sequence[Sequence[Example]],
    *,
    batch_size: int,
    pad_id: int,
    advance: Callable[[int], None] = lambda count: None,
) -> list[list[float]]:
    """Sums the log-probabilities of the labelled tokens of every example.

    The tokens with which all examples of a question begin go through the model once, whether they are prompt or
    answer, and what follows is computed from their keys and values. Questions of similar length share a batch, whose
    first pass is as long as its shortest shared beginning: it needs no padding, and tokens keep the positions that the
    model gives them by itself. Models that keep more or less than keys and values (see `keeps_prompts`) compute every
    example from its first token.

    Args:
        model: A causal language model in eval mode.
        questions: For each question its prompt with each answer, which is labelled; at least one token comes before it.
        batch_size: Most examples that go through the model at a time. Keys and values of their prompts are in memory.
        pad_id: Token that fills up shorter rows.
        advance: Called with the number of examples of every finished batch.

    Returns:
        Log-likelihoods in nats, in the order of the questions and of their examples.

    Raises:
        ConfigError: One is not a number, or the model has no position or no embedding for a token.
    """
    _check_fit(model, questions, pad_id)
    collate = PaddingCollator(pad_id)
    found = [0.0] * sum(map(len, questions))
    for groups in _batches(_groups(questions, sharing=keeps_prompts(model, pad_id)), batch_size):
        batch = collate([_tensors(example) for group in groups for example in group.examples])
        batch = {name: values.to(model.device) for name, values in batch.items()}
        sums = _sums(model, batch, [len(group.examples) for group in groups], _shared(groups), batch_size)
        positions = [position for group in groups for position in group.positions]
        if sums.isnan().any():
            # Of those no option is the best one; a comparison would take the first.
            raise ConfigError(
                "The model's outputs are not numbers.",
                got=f"NaN as the log-likelihood of {int(sums.isnan().sum())} of {len(sums)} answers",
                expected="finite outputs",
                fix="--dtype float32, if values overflowed in half precision; else the adapter or its base is damaged",
            )
        for position, value in zip(positions, sums.tolist(), strict=True):
            found[position] = value
        advance(len(positions))
    values = iter(found)
    return [list(itertools.islice(values, len(examples))) for examples in questions]


def best_option(scores: Sequence[float]) -> int:
    """Returns the position of the highest score; of equal ones the first."""
    return max(range(len(scores)), key=lambda index: scores[index])


def _check_fit(model: PreTrainedModel, questions: Sequence[Sequence[Example]], pad_id: int) -> None:
    limits, rows = ModelLimits.of(model), [example.input_ids for examples in questions for example in examples]
    if limits is not None and rows:
        largest, longest = max(pad_id, *map(max, rows)), max(map(len, rows))
        limits.check_rows("questions", largest_id=largest, longest=longest, shorter="leave longer questions out")


def _groups(questions: Sequence[Sequence[Example]], *, sharing: bool) -> Iterator[_Group]:
    positions = itertools.count()
    for examples in questions:
        if sharing:
            yield _Group(examples, list(itertools.islice(positions, len(examples))), _common(examples))
        else:
            yield from (_Group([example], [next(positions)], 0) for example in examples)


def _common(examples: Sequence[Example]) -> int:
    """Tokens that all examples begin with."""
    columns = zip(*(example.input_ids for example in examples), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))


def _shared(groups: Sequence[_Group]) -> int:
    return min(group.shared for group in groups)


def _batches(groups: Iterator[_Group], batch_size: int) -> Iterator[list[_Group]]:
    """Joins groups of similar length, longest first: what does not fit into memory shows at once."""
    batch: list[_Group] = []
    for group in sorted(groups, key=lambda group: (group.shared, group.longest), reverse=True):
        if batch and not _belong_together([*batch, group], batch_size):
            yield batch
            batch = []
        batch.append(group)
    if batch:
        yield batch


def _belong_together(groups: Sequence[_Group], batch_size: int) -> bool:
    """Whether groups fit in a batch, and joining them adds no more tokens than its first pass has.

    Longer beginnings than the shortest go through the model once for each example beyond it, and rows are filled up.
    """
    if sum(len(group.examples) for group in groups) > batch_size:
        return False
    if groups[0].shared == 0:
        return True
    shared = _shared(groups)
    rest = max(group.longest for group in groups) - shared
    added = sum(len(group.examples) * (rest - (group.longest - group.shared)) for group in groups)
    return added <= len(groups) * shared


@torch.inference_mode()
def _sums(
    model: PreTrainedModel, batch: Mapping[str, Tensor], sizes: Sequence[int], shared: int, batch_size: int
) -> Tensor:
    """Sums for the rows of a batch; each question has as many as `sizes` says, with the same first `shared` tokens."""
    ids, mask, targets = batch["input_ids"][:, :-1], batch["attention_mask"][:, :-1], batch["labels"][:, 1:]
    counts = torch.tensor(sizes, device=ids.device)
    question_of = torch.arange(len(sizes), device=ids.device).repeat_interleave(counts)
    cache = empty_cache(model) if shared else None
    sums = torch.zeros(len(ids), dtype=torch.float64, device=ids.device)
    if shared:
        first = counts.cumsum(0) - counts
        sums += _pass(model, ids[first, :shared], mask[first, :shared], cache, targets[:, :shared], question_of)
    if shared < ids.shape[1]:
        for rows in torch.arange(len(ids), device=ids.device).split(batch_size):
            past = rows_of(cache, question_of[rows]) if cache is not None else None
            sums[rows] += _pass(model, ids[rows, shared:], mask[rows], past, targets[rows, shared:])
    return sums


def _pass(
    model: PreTrainedModel,
    ids: Tensor,
    mask: Tensor,
    cache: DynamicCache | None,
    targets: Tensor,
    row_of: Tensor | None = None,
) -> Tensor:
    """Sums the log-probabilities of targets after a pass over `ids`, each in its own row or in that of `row_of`."""
    columns = (targets != IGNORE_INDEX).any(dim=0).nonzero().flatten()
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": cache is not None}
    if cache is not None:
        inputs["past_key_values"] = cache
    log_probs = logits_at(model, inputs, columns).float().log_softmax(dim=-1)
    rows = torch.arange(len(targets), device=ids.device) if row_of is None else row_of
    targets = targets[:, columns]
    labelled = targets != IGNORE_INDEX
    chosen = log_probs[rows[:, None], torch.arange(len(columns), device=ids.device), targets.masked_fill(~labelled, 0)]
    return chosen.double().masked_fill(~labelled, 0.0).sum(dim=1)


def _tensors(example: Example) -> dict[str, Tensor]:
    return {"input_ids": torch.tensor(example.input_ids), "labels": torch.tensor(example.labels)}
