"""Batched generation: prompts out of labelled batches, answers, and a table of samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pera_lightning.data.chat.chat_template import ChatTemplate
from pera_lightning.data.examples import IGNORE_INDEX, last_answer
from pera_lightning.data.model_limits import ModelLimits
from pera_lightning.errors import ConfigError, shown
from pera_lightning.form_bounds import MAX_TOKEN, is_whole
from pera_lightning.loading.tokenizer_trial import while_tokenising
from pera_lightning.models.evaluation_mode import evaluation_mode
from pera_lightning.models.token_sampling import GREEDY, Sampling
from pera_lightning.run_log.messages import rank_zero_warn

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
    from transformers.generation.streamers import BaseStreamer

    from pera_lightning.plain_table import PlainTable


@dataclass(frozen=True)
class GenerationSample:
    """A prompt, the answer it should get and the answer the model gave, as texts."""

    prompt: str
    expected: str
    generated: str

    @property
    def matches(self) -> bool:
        """Whether the answers are equal but for white space around them."""
        return self.generated.strip() == self.expected.strip()


def split_prompts(batch: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Take the rows of a padded batch apart into prompts and the answers that the labels hold.

    The answer of a row is its last run of labels other than -100, the prompt everything before it; a row without
    labels is all prompt.

    Args:
        batch: `input_ids` (B, T), right-padded, and where there are any `attention_mask` and `labels` (B, T).

    Returns:
        B prompts and B answers, int64 vectors without padding; the answer of a row without labels is empty.
    """
    ids = batch["input_ids"]
    labels = batch.get("labels", torch.full_like(ids, IGNORE_INDEX))
    lengths = batch.get("attention_mask", torch.ones_like(ids)).sum(dim=1).tolist()
    prompts, answers = [], []
    for row, (length, own) in enumerate(zip(lengths, labels.cpu(), strict=True)):
        start, end = last_answer(own[:length])
        prompts.append(ids[row, :start])
        answers.append(ids[row, start:end])
    return prompts, answers


def stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of the tokens that end an answer, in ascending order.

    These are the end tokens of the model's generation config and of the tokenizer, and the special token with
    which the chat template closes an answer: base models often carry a template whose end of turn the other
    two do not name.

    Raises:
        ConfigError: One of them names something that is no token id.
    """
    configured = model.generation_config.eos_token_id
    named = [*(configured if isinstance(configured, list | tuple) else [configured]), tokenizer.eos_token_id]
    stops = [token for token in named if token is not None]
    wrong = next((token for token in stops if not is_whole(token) or token > MAX_TOKEN), None)
    if wrong is not None:
        raise ConfigError(
            "A model's generation config or its tokenizer names an end token that is none.",
            got=f"eos_token_id {shown(configured)}, of the tokenizer {shown(tokenizer.eos_token_id)}",
            expected="the id of a token, a list of ids, or null",
            fix="correct eos_token_id in the model's generation_config.json, or in its tokenizer",
        )
    end = _end_of_turn(tokenizer)
    # Some configs say -1 for none.
    return sorted({token for token in (*stops, end) if token is not None and token >= 0})


def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Tensor],
    max_new_tokens: int,
    streamer: BaseStreamer | None = None,
    *,
    num_beams: int = 1,
    sampling: Sampling = GREEDY,
) -> list[str]:
    """Answer prompts in one batch padded on the left, greedily unless `sampling` says otherwise.

    The model's own generation settings (sampling, penalties, lengths) take no part. The train or eval mode of
    every module is afterwards what it was.

    Args:
        model: A causal language model, adapted or not.
        tokenizer: Its tokenizer, with a pad token.
        prompts: Vectors of int64 token ids, none of them empty.
        max_new_tokens: Longest answer, in tokens.
        streamer: Gets every token when it is there, where there is one prompt.
        num_beams: Beams of a beam search; 1 is greedy decoding.
        sampling: Draws tokens by chance.

    Returns:
        The answers without their end and without special tokens, in the order of the prompts. They are no longer than
        the model has positions for.

    Raises:
        ConfigError: A prompt is longer than that, or holds a token that the model does not have.
    """
    from transformers import GenerationConfig

    max_new_tokens = _new_tokens(model, prompts, max_new_tokens)
    stops = stop_tokens(model, tokenizer)
    config = GenerationConfig(
        **sampling.options(),
        num_beams=num_beams,
        max_new_tokens=max_new_tokens,
        eos_token_id=stops or None,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    ids, mask = _pad_left([prompt.to(model.device) for prompt in prompts], tokenizer.pad_token_id)
    with _generation_config(model, config), evaluation_mode(model), sampling.seeded():
        # The method is GenerationMixin's, which the annotation PreTrainedModel does not tell.
        generate: Any = model.generate
        tokens = generate(input_ids=ids, attention_mask=mask, generation_config=config, streamer=streamer)
    answers = [_until_stop(row, stops) for row in tokens[:, ids.shape[1] :].tolist()]
    with while_tokenising("An answer"):
        return tokenizer.batch_decode(answers, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def generate_samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch: Mapping[str, Tensor],
    max_new_tokens: int,
) -> list[GenerationSample]:
    """Generate the answers of a batch and put them beside the true ones.

    Args:
        model: A causal language model, adapted or not.
        tokenizer: Its tokenizer, with a pad token.
        batch: See `split_prompts`; rows without an answer are left out.
        max_new_tokens: Longest answer, in tokens.
    """
    pairs = [pair for pair in zip(*split_prompts(batch), strict=True) if pair[1].numel() > 0]
    prompts, answers = (list(column) for column in zip(*pairs, strict=True))
    # The end-of-turn token closes a true answer but is no part of a generated one.
    if max(answer.numel() for answer in answers) > max_new_tokens + 1:
        rank_zero_warn(
            f"Some true answers are longer than max_new_tokens={max_new_tokens}: they can never be matched "
            "exactly. Raise max_new_tokens."
        )
    with while_tokenising("A sample"):
        prompt_texts = tokenizer.batch_decode(prompts, skip_special_tokens=True)
        expected = tokenizer.batch_decode(answers, skip_special_tokens=True)
    generated = generate_answers(model, tokenizer, prompts, max_new_tokens)
    return [GenerationSample(*texts) for texts in zip(prompt_texts, expected, generated, strict=True)]


def sample_table(samples: Iterable[GenerationSample], title: str) -> PlainTable:
    """A rich table of samples: prompt, expected answer, generated answer and whether they match."""
    from pera_lightning.plain_table import Lines, PlainTable

    table = PlainTable("prompt", "expected", "generated", "match", title=title, show_lines=True)
    for sample in samples:
        texts = (Lines(text.strip()) for text in (sample.prompt, sample.expected, sample.generated))
        table.add_row(*texts, "yes" if sample.matches else "no")
    return table


def _new_tokens(model: PreTrainedModel, prompts: Sequence[Tensor], wanted: int) -> int:
    limits, longest = ModelLimits.of(model), max(map(len, prompts))
    if limits is None:
        return wanted
    largest = max(int(prompt.max()) for prompt in prompts)
    limits.check_rows("prompts", largest_id=largest, longest=longest, shorter="shorten the prompts")
    room = limits.room_after(longest)
    if room is None or room >= wanted:
        return wanted
    rank_zero_warn(
        f"PERA: {limits.name} has {limits.positions} positions: after a prompt of {longest} tokens answers end at "
        f"{room} tokens, not at max_new_tokens={wanted}."
    )
    return room


def _pad_left(rows: list[Tensor], padding: int) -> tuple[Tensor, Tensor]:
    """The rows as one (B, T) tensor, and its attention mask."""
    ids = pad_sequence(rows, batch_first=True, padding_value=padding, padding_side="left")
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
    return ids, mask


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The first special token that the chat template writes after an assistant's message."""
    if tokenizer.chat_template is None:
        return None
    from jinja2.exceptions import TemplateError

    answer = "9f0c5e"
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
    try:
        tail = ChatTemplate(tokenizer, None).render(turns).rpartition(answer)[2]
    except TemplateError:  # then answers were not learnt with it either
        return None
    special = {token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special}
    with while_tokenising("The end of an answer"):
        ids = tokenizer(tail, add_special_tokens=False)["input_ids"]
    return next((token for token in ids if token in special), None)


def _until_stop(tokens: list[int], stops: Sequence[int]) -> list[int]:
    end = next((position for position, token in enumerate(tokens) if token in stops), len(tokens))
    return tokens[:end]


@contextmanager
def _generation_config(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    # `generate` fills what a given config leaves open from the model's own, so the latter steps aside.
    own = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = own
