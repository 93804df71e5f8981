"""Chat rows of which a part was dropped without a word: reasoning, tool calls, names, system messages, tools."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from pera_lightning.data.chat.conversations import BadRows, read_conversations
from pera_lightning.data.chat.prompts import ALPACA_TEMPLATE, ChatEncoder
from pera_lightning.data.instruction import InstructionDataModule
from pera_lightning.data.reading.parsed_row import Row
from pera_lightning.errors import ConfigError, DataError
from tests.data.conftest import SMOLLM2_TEMPLATE, build_tokenizer

USER, ANSWER = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 2, "text": 'say "hi"'}}}
TOOL = {"type": "function", "function": {"name": "add", "description": "adds numbers", "parameters": {}}}
# As Qwen3 has it: reasoning of the last turn only, calls and tools as JSON, a switch for the thinking.
RICH_TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>system\n' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.reasoning_content and loop.last %}{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}"
    "{% elif m.role == 'assistant' and enable_thinking is defined and not enable_thinking %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m.content | trim }}"
    "{% for call in m.tool_calls %}{{ '<call>' + call.function | tojson + '</call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
# As DeepSeek-R1 has it: of an answer only what follows the reasoning.
STRIPPING_TEMPLATE = SMOLLM2_TEMPLATE.replace("message['content']", "message['content'].split('</think>')[-1]")
WITHOUT_SYSTEM = (
    "{% for m in messages %}{% if m.role != 'system' %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tokenizer(template: str = SMOLLM2_TEMPLATE) -> Any:
    return build_tokenizer(template, bos_token="<|im_start|>", eos_token="<|im_end|>")


def data(folder: Path, row: dict[str, Any], template: str = SMOLLM2_TEMPLATE, **options: Any) -> InstructionDataModule:
    good = {"messages": [USER, ANSWER]}
    path = folder / "chat.jsonl"
    path.write_text("\n".join(map(json.dumps, (good, row))))
    return InstructionDataModule(str(path), tokenizer=tokenizer(template), **options)


def texts(module: InstructionDataModule) -> list[tuple[str, str]]:
    """Of every training example: all of it, and what is learnt."""
    module.setup("fit")
    decode = module._tokenizer.decode
    found = []
    for example in module.train_dataloader().dataset:
        ids, labels = example["input_ids"], example["labels"]
        found.append((decode(ids), decode(ids[labels != -100])))
    return found


def answered(**more: Any) -> dict[str, Any]:
    return {"messages": [USER, {**ANSWER, **more}]}


def asked(**more: Any) -> dict[str, Any]:
    return {"messages": [{**USER, **more}, ANSWER]}


DROPPED = [
    (answered(reasoning_content="two and two"), "reasoning_content", 1),
    (answered(thinking="two and two"), "thinking", 1),
    (answered(reasoning="two and two"), "reasoning", 1),
    (answered(tool_calls=[CALL]), "tool_calls", 1),
    (answered(weight=0), "weight", 1),
    (answered(weight=1.0), "weight", 1),
    (answered(train=False), "train", 1),
    (answered(prefix=True), "prefix", 1),
    (answered(refusal="no"), "refusal", 1),
    (asked(name="Ada"), "name", 0),
    (asked(tool_call_id="c1"), "tool_call_id", 0),
    (asked(images=["a.png"]), "images", 0),
    # The text stands in the row anyhow.
    (asked(name="user"), "name", 0),
]


@pytest.mark.parametrize("fields", ["reasoning_content", ["content"], ["reasoning_content", "messages"]])
def test_what_cannot_be_ignored_is_refused(fields: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ignore_fields cannot have this value"):
        data(tmp_path, answered(), ignore_fields=fields)


@pytest.mark.parametrize(("row", "field", "index"), DROPPED)
def test_what_the_template_does_not_write_is_refused_by_name(
    row: dict[str, Any], field: str, index: int, tmp_path: Path
) -> None:
    words = rf"line 2, messages\[{index}\], field '{field}': the chat template leaves it out"
    with pytest.raises(DataError, match=rf"(?s)chat\.jsonl, {words}.*ignore_fields"):
        data(tmp_path, row).setup("fit")
    skipping = data(tmp_path, row, on_bad_row="skip")
    assert len(texts(skipping)) == 1
    assert skipping._splits["train"].summary.rows_skipped == 1
    assert len(texts(data(tmp_path, row, ignore_fields=[field]))) == 2


@pytest.mark.parametrize("field", ["tools", "documents"])
def test_fields_of_rows_that_the_template_does_not_write(field: str, tmp_path: Path) -> None:
    for value in ([TOOL], json.dumps([TOOL])):
        row = {**answered(), field: value}
        with pytest.raises(DataError, match=rf"line 2, field '{field}': the chat template leaves it out"):
            data(tmp_path, row).setup("fit")
        rows = [Row("file, line 1", {"prompt": "q", "completion": "a", field: value})]
        [conversation] = read_conversations("file", rows, "auto", BadRows("error"))
        with pytest.raises(DataError, match=rf"file, line 1, field '{field}': the chat template leaves it out"):
            ChatEncoder(tokenizer(), max_length=1000).encode(conversation)
    with pytest.raises(DataError, match=rf"field '{field}': cannot be used"):
        data(tmp_path, {**answered(), field: "not json"}).setup("fit")
    for empty in (None, [], ""):
        assert len(texts(data(tmp_path, {**answered(), field: empty}))) == 2


def test_what_the_template_writes_arrives(tmp_path: Path) -> None:
    row = {**answered(reasoning_content="two and two", tool_calls=[CALL]), "tools": [TOOL]}
    whole, learnt = texts(data(tmp_path, row, RICH_TEMPLATE))[1]
    assert "adds numbers" in whole
    assert "adds numbers" not in learnt
    assert learnt.startswith("<think>\ntwo and two\n</think>\n\n4<call>")
    # Quotation marks are written in another way, and count.
    assert r"say \"hi\"" in learnt


def test_the_reasoning_of_every_turn_is_learnt_where_it_is_the_last(tmp_path: Path) -> None:
    turns = [
        USER,
        {**ANSWER, "reasoning_content": "first thought"},
        USER,
        {**ANSWER, "reasoning_content": "second one"},
    ]
    _, (first, first_learnt), (second, second_learnt) = texts(data(tmp_path, {"messages": turns}, RICH_TEMPLATE))
    assert "first thought" in first_learnt
    assert "second one" in second_learnt
    assert "first thought" not in second
    assert "second one" not in first


def test_a_call_without_words(tmp_path: Path) -> None:
    for content in (None, ""):
        row = answered(content=content, tool_calls=[CALL])
        assert "<call>" in texts(data(tmp_path, row, RICH_TEMPLATE))[1][1]
        with pytest.raises(DataError, match="messages"):
            data(tmp_path, answered(content=content)).setup("fit")


def test_a_part_of_a_call_that_is_not_written(tmp_path: Path) -> None:
    template = RICH_TEMPLATE.replace("call.function | tojson", "call.function.name")
    with pytest.raises(DataError, match=r"(?s)messages\[1\], field 'tool_calls': .*say \\\"hi|say "):
        data(tmp_path, answered(tool_calls=[CALL]), template).setup("fit")


def test_a_reasoning_inside_of_the_content_that_the_template_cuts_off(tmp_path: Path) -> None:
    row = answered(content="<think>\ntwo and two\n</think>\n\n4")
    with pytest.raises(DataError, match=r"(?s)messages\[1\], field 'content': the chat template leaves.*two and two"):
        data(tmp_path, row, STRIPPING_TEMPLATE).setup("fit")
    assert "two and two" in texts(data(tmp_path, row))[1][1]


def test_texts_that_the_template_writes_in_another_way(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": " a\n  b <i> "}, {"role": "assistant", "content": "C & d"}]}
    loud = "| upper if loop.first else message['content']"
    for change in ("| trim", loud, "| replace('<', '&lt;')", "| replace('\n', ' ')"):
        template = SMOLLM2_TEMPLATE.replace("message['content']", f"(message['content'] {change})")
        assert len(texts(data(tmp_path, row, template))) == 2


def test_a_system_message_that_the_template_drops(tmp_path: Path) -> None:
    row = {"messages": [{"role": "system", "content": "be brief"}, USER, ANSWER]}
    with pytest.raises(
        DataError, match=r"(?s)messages\[0\], field 'content': the chat template leaves it out.*be brief"
    ):
        data(tmp_path, row, WITHOUT_SYSTEM).setup("fit")
    with pytest.raises(ConfigError, match="leaves the system_prompt out"):
        data(tmp_path, answered(), WITHOUT_SYSTEM, system_prompt="be brief").setup("fit")
    assert "be brief" in texts(data(tmp_path, row))[1][0]


def test_messages_are_counted_without_the_system_prompt_of_the_options(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"messages\[1\], field 'thinking'"):
        data(tmp_path, answered(thinking="x"), system_prompt="be brief").setup("fit")


def cutting(content: str, start: str = "") -> str:
    body = f"<turn>{{{{ m.role }}}}:{{{{ {content} }}}}<end>"
    return (
        f"{start}{{% for m in messages %}}{body}{{% endfor %}}"
        "{% if add_generation_prompt %}<turn>assistant:{% endif %}"
    )


SAID = {"messages": [{"role": "user", "content": "hello there my friend"}, {"role": "assistant", "content": "yes sir"}]}
PARTS = [
    ("m.content[:8]", 0),
    ("m.content.split('my')[0]", 0),
    ("m.content.split('there')[-1]", 0),
    ("m.content | replace('there ', '')", 0),
    ("m.content if m.role == 'user' else m.content.split()[-1]", 1),
]


@pytest.mark.parametrize(("content", "index"), PARTS)
@pytest.mark.parametrize("start", ["", "{{ strftime_now('%H:%M') }}"])
def test_a_part_of_a_text_is_left_out(content: str, index: int, start: str, tmp_path: Path) -> None:
    words = rf"messages\[{index}\], field 'content': the chat template leaves it out"
    with pytest.raises(DataError, match=words):
        data(tmp_path, SAID, cutting(content, start)).setup("fit")
    assert len(texts(data(tmp_path, SAID, cutting("m.content", start)))) == 2


def test_a_system_message_that_stands_in_another_turn_is_missed(tmp_path: Path) -> None:
    row = {"messages": [{"role": "system", "content": "hello there"}, *SAID["messages"]]}
    without = cutting("m.content").replace("in messages", "in messages if m.role != 'system'")
    with pytest.raises(DataError, match=r"messages\[0\], field 'content': the chat template leaves it out"):
        data(tmp_path, row, without).setup("fit")
    assert len(texts(data(tmp_path, row, cutting("m.content")))) == 2


def test_options_of_the_template(tmp_path: Path) -> None:
    for value, thinks in ((False, True), (True, False)):
        row = {**answered(), "chat_template_kwargs": {"enable_thinking": value}}
        assert ("<think>" in texts(data(tmp_path, row, RICH_TEMPLATE))[1][0]) is thinks
    with pytest.raises(DataError, match=r"(?s)chat_template_kwargs, field 'enable_thinking': the .*: \[enable"):
        data(tmp_path, {**answered(), "chat_template_kwargs": {"enable_thinking": False}}).setup("fit")
    for wrong in ("x", {"tokenize": True}, {"messages": []}):
        with pytest.raises(DataError, match="field 'chat_template_kwargs': cannot be used"):
            data(tmp_path, {**answered(), "chat_template_kwargs": wrong}).setup("fit")


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"role": "tool", "content": "4"}, "field 'role'"),
        ({"role": "developer", "content": "be brief"}, "field 'role'"),
        ({"role": "user", "content": [{"type": "text", "text": "2+2?"}]}, "field 'content'.*\n.*list"),
        ({"role": "user", "content": None}, "field 'content'"),
        ({"role": "user", "content": ""}, "field 'content'"),
    ],
)
def test_turns_that_are_not_known_are_refused_by_name(message: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"line 2, messages\[0\], {words}"):
        data(tmp_path, {"messages": [message, USER, ANSWER]}).setup("fit")


def test_a_template_that_chokes_on_a_value_names_the_row(tmp_path: Path) -> None:
    template = SMOLLM2_TEMPLATE.replace("message['content']", "message['content'] + (message['name'] or '')")
    with pytest.raises(DataError, match="line 2: the chat template does not accept this conversation"):
        data(tmp_path, {"messages": [{**USER, "name": 5}, ANSWER]}, template).setup("fit")


def test_columns_that_are_not_used_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    fields = [{"prompt": "q", "completion": "a", "id": 1, "category": "x"}] * 30
    rows = [Row(f"file, line {n}", row) for n, row in enumerate([*fields, {**fields[0], "late": 2}, *fields])]
    with caplog.at_level(logging.INFO):
        assert len(list(read_conversations("file", rows, "auto", BadRows("error")))) == 61
    named = [record.message for record in caplog.records if "no use is made" in record.message]
    assert named == [
        "file: no use is made of the fields id, category",
        "file: no use is made of the fields late",
    ]


def test_prompts_for_generation_get_the_tools_too() -> None:
    encoder = ChatEncoder(tokenizer(RICH_TEMPLATE), max_length=1000)
    ids = encoder.encode_prompt([USER], {"tools": [TOOL]})
    assert "adds numbers" in tokenizer(RICH_TEMPLATE).decode(ids)


def test_templates_of_our_own() -> None:
    rows = [Row("file, line 1", answered(thinking="x"))]
    [conversation] = read_conversations("file", rows, "auto", BadRows("error"))
    for options in ({"use_chat_template": False}, {"template": ALPACA_TEMPLATE}):
        with pytest.raises(DataError, match="field 'thinking'"):
            ChatEncoder(tokenizer(), max_length=1000, **options).encode(conversation)
