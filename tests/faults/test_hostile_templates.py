"""Chat templates that loop, grow or break end in an error of ours, in seconds; others render as in transformers."""

from __future__ import annotations

import datetime
import os
import time
from pathlib import Path
from typing import Any

import pytest

from pera_lightning.data.chat import template_process
from pera_lightning.data.chat.chat_template import ChatTemplate
from pera_lightning.data.chat.conversations import Conversation
from pera_lightning.data.chat.prompts import ChatEncoder
from pera_lightning.data.chat.template_process import Rendering
from pera_lightning.data.instruction import InstructionDataModule
from pera_lightning.errors import ConfigError, DataError
from pera_lightning.models.generation import stop_tokens
from tests.data.conftest import SMOLLM2_TEMPLATE, build_tokenizer

HOSTILE = {
    "nested loops": "{% for i in range(10**5) %}{% for j in range(10**5) %}{% endfor %}{% endfor %}x",
    "doubling": "{% set n = namespace(s='ab') %}{% for i in range(90) %}{% set n.s = n.s + n.s %}{% endfor %}{{ n.s }}",
    "doubling by ~": "{% set n = namespace(s='a') %}{% for i in range(90) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "doubling a block": "{% set a %}aa{% endset %}" + "{% set a %}{{ a }}{{ a }}{% endset %}" * 60 + "{{ a }}",
    "doubling a list": "{% set n = namespace(s=[1]) %}{% for i in range(90) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "long text": "{{ 'abcd' * 10**6 }}",
    "multiplied text": "{{ 'a' * 10**10 }}",
    "padded text": "{{ '%99999999999d' % 1 }}",
    "centred text": "{{ 'a'.center(10**11) }}",
    "formatted text": "{{ '{:>10000000000}'.format(1) }}",
    "power": "{{ 10**10**10 }}",
    "power of powers": "{% set n = namespace(s=7) %}{% for i in range(99) %}{% set n.s = n.s*n.s %}{% endfor %}",
    "macro": "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "macros without a bottom": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(90) }}",
    "lorem ipsum": "{{ lipsum(n=10**9) }}",
    "division": "{{ 1 / 0 }}",
    "overflow": "{{ 2.0 ** 5000 }}",
    "digits": "{{ 9 ** 9999 }}",
    "range": "{{ range(10**9)|list }}",
    "attribute": "{{ messages.__class__.__mro__ }}",
    "undefined": "{{ nothing.at.all }}",
    "raises": "{{ raise_exception('no') }}",
    "type": "{{ 'a' + 1 }}",
    "half a character": "{{ '\\ud800' }}",
    "no text": "{# nothing #}",
    "syntax": "{% for %}",
    "nesting": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "deep blocks": "{% if 1 %}" * 2000,
    "include": "{% include 'x' %}",
    "cycler": "{% set c = cycler(*range(99999)) %}{% for i in range(99999) %}{% for j in range(99999) %}{{ c.next() }}"
    "{% endfor %}{% endfor %}",
}


@pytest.fixture(autouse=True)
def bounded() -> Any:
    """What is rendered takes neither time nor memory of this process; that of the other ends by itself."""
    start, before = time.process_time(), _memory()
    yield
    assert time.process_time() - start < 5
    assert _memory() - before < 200 << 20


def _memory() -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    return next(int(line.split()[1]) << 10 for line in status.read_text().splitlines() if line.startswith("VmHWM"))


@pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE)
def test_refused_before_the_data_are_prepared(template: str) -> None:
    tokenizer = build_tokenizer(template, eos_token="<|im_end|>")
    with pytest.raises(ConfigError, match="template cannot be used"):
        ChatEncoder(tokenizer, max_length=100)


ROWS = [[{"role": "user", "content": f"question {n}"}, {"role": "assistant", "content": "yes"}] for n in range(40)]
LOOP = "{% for i in range(10**5) %}{% for j in range(10**5) %}{% endfor %}{% endfor %}"


def test_a_row_that_makes_a_template_loop_is_a_bad_row() -> None:
    template = "{% if messages[0].content == 'question 33' %}" + LOOP + "{% endif %}" + SMOLLM2_TEMPLATE
    encoder = ChatEncoder(build_tokenizer(template, eos_token="<|im_end|>"), max_length=200)
    found = list(encoder.encode_all(Conversation(f"line {n}", row) for n, row in enumerate(ROWS)))
    assert [isinstance(one, DataError) for one in found] == [n == 33 for n in range(40)]
    assert "line 33: the chat template does not accept" in str(found[33])
    assert "more than 1 s" in str(found[33])
    plain = ChatEncoder(build_tokenizer(SMOLLM2_TEMPLATE, eos_token="<|im_end|>"), max_length=200)
    assert found[32] == plain.encode(Conversation("line 32", ROWS[32]))
    with pytest.raises(DataError, match="does not accept"):
        encoder.encode_prompt([{"role": "user", "content": "question 33"}])


def test_rows_that_all_make_it_loop_end_the_run(tmp_path: Path) -> None:
    template = "{% if messages[0].content != '?' %}" + "{{ 'a' * 10**10 }}{% endif %}"
    tokenizer = build_tokenizer(template + SMOLLM2_TEMPLATE, eos_token="<|im_end|>")
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "q", "completion": "a"}\n' * 100)
    data = InstructionDataModule(str(file), tokenizer=tokenizer, max_length=200, on_bad_row="skip")
    with pytest.raises(ConfigError, match=r"(?s)takes too long.*4 conversations"):
        data.setup("fit")


def test_generation_knows_no_end_of_turn_of_a_template_that_fails() -> None:
    class Model:
        generation_config = type("Config", (), {"eos_token_id": 1})

    tokenizer = build_tokenizer("{{ 'a' * 10**10 }}", eos_token="<|endoftext|>")
    model: Any = Model()
    assert stop_tokens(model, tokenizer) == [0, 1]
    tokenizer.chat_template = SMOLLM2_TEMPLATE
    assert stop_tokens(model, tokenizer) == [0, 1, 2]


TOOLS = [{"type": "function", "function": {"name": "f", "description": "é <&>", "parameters": {"type": "object"}}}]
DAY = datetime.date(2024, 2, 29)
RICH = """{%- if tools %}{{- '<tools>' }}{%- for tool in tools %}{{- tool | tojson(indent=2) }}{%- endfor %}
{%- endif %}
{%- macro part(m) %}{{ m.role | upper }}:
{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}
{{- m.content | trim }}{% for call in m.tool_calls or [] %}{{ call.function.arguments | tojson }}{% endfor %}
{% endmacro %}
{%- set ns = namespace(last=-1) %}{%- for m in messages %}{%- if m.role == 'user' %}{% set ns.last = loop.index0 %}
{%- endif %}{%- endfor %}{{ bos_token }}{% for m in messages %}{{ part(m) }}{{ eos_token }}{% if loop.last %}{% break %}
{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}
{{ mood | default('') }}{{ ns.last }}"""


def test_other_templates_render_as_in_transformers() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": [1, 2.5, None, "ü"]}}}
    chats = [
        [{"role": "user", "content": " hi \n there "}],
        [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "u\u2028"},
            {"role": "assistant", "content": "a"},
        ],
        [{"role": "user", "content": "u"}, {"role": "assistant", "content": "", "tool_calls": [call]}],
        [{"role": "user", "content": "😀"}, {"role": "assistant", "content": "b", "reasoning_content": "why"}],
    ]
    for template in (RICH, SMOLLM2_TEMPLATE, {"default": SMOLLM2_TEMPLATE, "tool_use": RICH}):
        tokenizer = build_tokenizer(None, bos_token="<|im_start|>", eos_token="<|im_end|>")
        tokenizer.chat_template = template
        renderings = [
            Rendering(chat, asked, variables)
            for chat in chats
            for asked in (True, False)
            for variables in (
                {},
                {"tools": TOOLS},
                {"mood": "calm", "tools": TOOLS},
                {"mood": datetime.date(2024, 2, 29)},
            )
        ]
        right = [
            tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=asked, **variables)
            for chat, asked, variables in renderings
        ]
        assert ChatTemplate(tokenizer, None).render_all(renderings) == right
    assert len(set(right)) > len(right) / 3


def test_a_fork_renders_in_a_process_of_its_own() -> None:
    if not hasattr(os, "fork"):
        return
    template = ChatTemplate(build_tokenizer(SMOLLM2_TEMPLATE), None)
    before = template.render(ROWS[0])
    child = os.fork()
    if child == 0:
        os._exit(0 if template.render(ROWS[0]) == before else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert template.render(ROWS[0]) == before


def test_a_process_that_cannot_be_started_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    template_process.end_process()
    tokenizer = build_tokenizer(SMOLLM2_TEMPLATE, eos_token="<|im_end|>")
    for executable in ("/nothing/here", "/bin/false"):
        monkeypatch.setattr("sys.executable", executable)
        with pytest.raises(ConfigError, match="cannot be started"):
            ChatEncoder(tokenizer, max_length=100)
    assert ChatEncoder(tokenizer, max_length=100, use_chat_template=False).encode(Conversation("line 1", ROWS[0]))
