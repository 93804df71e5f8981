from __future__ import annotations

from typing import Any

import pytest
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from pera_lightning.data import tokenised
from pera_lightning.data.chat.conversations import BadRows, Conversation
from pera_lightning.data.chat.prompts import ChatEncoder
from pera_lightning.data.reading.splits import SplitRows
from pera_lightning.data.tokenised import tokenise_split
from pera_lightning.errors import DataError

REJECTING_TEMPLATE = (
    "{% for m in messages %}{% if 'never' in m['content'] %}{{ raise_exception('not that') }}{% endif %}"
    "{{ m['role'] + ':' + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


def exchange(question: str, answer: str) -> Conversation:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Conversation("file, line 5", messages)


def test_the_summary_counts_tokens_and_what_was_cut(chat_tokenizer: Any) -> None:
    texts = [("q", "a"), ("why " * 300, "a"), ("q", "because " * 300)]
    rows = SplitRows([exchange(*text) for text in texts], BadRows("error"))
    split = tokenise_split("train", rows, ChatEncoder(chat_tokenizer, max_length=150))
    lengths = split.lengths
    assert lengths[1:] == [150, 150]
    answers = sum((split[index]["labels"] != -100).sum().item() for index in range(3))
    assert str(split.summary) == (
        f"3 rows, {sum(lengths)} tokens, {answers} answer tokens, 2 prompts cut, 1 answers cut, 0 rows skipped"
    )


def test_rows_that_the_template_rejects_are_bad_rows(make_tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    encoder = ChatEncoder(make_tokenizer(REJECTING_TEMPLATE, eos_token="<|im_end|>"), max_length=100)
    conversations = [exchange("never", "a"), exchange("q", "a")]
    split = tokenise_split("val", SplitRows(conversations, BadRows("skip")), encoder)
    assert (split.summary.rows, split.summary.rows_skipped, len(split)) == (1, 1, 1)
    assert "val: skipped 1 bad row: file, line 5: the chat template" in caplog.text
    with pytest.raises(DataError, match="file, line 5: the chat template does not accept"):
        tokenise_split("val", SplitRows(conversations, BadRows("error")), encoder)


def test_a_split_without_usable_rows_is_an_error(chat_tokenizer: Any) -> None:
    bad_rows = BadRows("skip")
    bad_rows.handle(DataError("file, line 1: broken", got="", expected="", fix=""))
    with pytest.raises(DataError, match=r"no usable row[\s\S]*1 bad row: file, line 1: broken"):
        tokenise_split("test", SplitRows([], bad_rows), ChatEncoder(chat_tokenizer, max_length=100))


@pytest.mark.parametrize(("rows", "rank", "hidden"), [(9, 0, True), (10, 0, False), (10, 1, True)])
def test_many_rows_show_their_progress_in_the_first_process(
    chat_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, rows: int, rank: int, hidden: bool
) -> None:
    shown: list[Any] = []

    def track(items: list[Conversation], description: str, *, disable: bool, **_: Any) -> list[Conversation]:
        shown.append((description, disable))
        return items

    monkeypatch.setattr(tokenised, "_ROWS_WORTH_A_PROGRESS_BAR", 10)
    monkeypatch.setattr(tokenised, "track", track)
    monkeypatch.setattr(rank_zero_only, "rank", rank)
    conversations = SplitRows([exchange("q", "a")] * rows, BadRows("error"))
    split = tokenise_split("train", conversations, ChatEncoder(chat_tokenizer, max_length=100))
    assert shown == [("Tokenising train", hidden)]
    assert split.summary.rows == rows
