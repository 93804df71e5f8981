"""Chat templates of tokenizers: programs in Jinja that come with a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.hostile.kinds import Case, Kind
from tests.hostile.mutations.files import damage_bytes
from tests.hostile.outcomes import Wrong
from tests.support.pretrained import CHAT_TEMPLATE

ROWS = [{"prompt": f"what is {word}?", "completion": f"it is {word}."} for word in ("red", "blue", "green", "grey")]
FILE = "chat_template.jinja"
_HEAD = "{% for message in messages %}{{ '<turn>' + message['role'] + ':' + message['content'] + '<end>' }}"
_LOOPS = (
    "{% for i in range(10**9) %}{{ i }}{% endfor %}",
    "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{{ 'a' }}{% endfor %}{% endfor %}",
    "{% set ns = namespace(x='a') %}{% for i in range(200) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x='ab') %}{% for i in range(64) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x=[0]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(64) }}",
    "{{ 'a' * 10**10 }}",
    "{{ 'a' * 10**8 }}",
    "{{ ('a' * 10000)|center(10**9) }}",
    "{{ 9**9**9 }}",
    "{{ (2**100000)**1000 }}",
    "{{ range(10**8)|list|length }}",
    "{{ range(10**12)|sum }}",
    "{{ ['a'] * 10**9 }}",
    "{{ 'a'|replace('', 'b' * 10000)|replace('b', 'c' * 10000)|replace('c', 'd' * 10000) }}",
    "{{ '%1000000000d'|format(1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ ('a' * 30)|indent(10**9) }}",
    "{{ 'a'.ljust(10**10) }}",
    "{% set ns = namespace(m=messages) %}{% for i in range(50) %}{% set ns.m = [ns.m, ns.m] %}{% endfor %}{{ ns.m }}",
)
_ERRORS = (
    "{{ 1 / 0 }}",
    "{{ 1 // 0 }}",
    "{{ 5 % 0 }}",
    "{{ 1 / messages[0]['content']|length - 1 / 0 }}",
    "{{ 2.0 ** 5000 }}",
    "{{ 'a' + 1 }}",
    "{{ 'a' < 1 }}",
    "{{ messages[10**20] }}",
    "{{ messages['a']['b']['c'] }}",
    "{{ undefined.attribute.other }}",
    "{{ none() }}",
    "{{ [1, 2, 3][::0] }}",
    "{{ 'abc'|int / 0 }}",
    "{{ range(1, 2, 0)|list }}",
    "{{ raise_exception('no') }}",
    "{{ '\\ud800' }}",
    "{{ 10**5000 }}",
    "{{ [1]|first(2) }}",
    "{{ messages|map(attribute='role.x.y')|join }}",
    "{% include 'x' %}",
    "{% extends '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{{ strftime_now('%' * 100) }}",
    "{{ strftime_now(5) }}",
    "{{ messages|tojson(indent='a') }}",
    "{{ messages[0].pop('role') }}",
    "{{ messages.append(1) }}",
    "{{ messages|batch(0)|list }}",
    "{{ messages|slice(0)|list }}",
    "{% for a, b, c in messages %}{% endfor %}",
    "{{ namespace(1) }}",
    "{{ dict(1) }}",
    "{{ lipsum(10**6) }}",
    "{{ cycler() }}",
    "{{ ('a' * 100)|wordwrap(0) }}",
    "{{ 'x'|nofilter }}",
    "{% generation %}{{ 1 / 0 }}{% endgeneration %}",
    "{% break %}",
)
_ESCAPES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}",
    "{{ self.__init__.__globals__.__builtins__.open('CANARY', 'w') }}",
    "{{ lipsum.__globals__['os'].popen('touch CANARY').read() }}",
    "{{ joiner.__init__.__globals__.os.mknod('CANARY') }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ raise_exception.__globals__['__builtins__']['open']('CANARY', 'w') }}",
    "{{ strftime_now.__globals__ }}",
    "{{ tojson.__globals__ }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "{{ ('{0.__class__}'|attr('format'))(messages) }}",
    "{{ messages|attr('__class__') }}",
    "{{ messages|map(attribute='__class__')|list }}",
)


def _whole(random: Random, snippets: tuple[str, ...]) -> str:
    """A template that does something bad: everywhere, for a role, in long conversations, or for a late message."""
    bad = random.choice(snippets)
    end = "{% endfor %}{% if add_generation_prompt %}{{ '<turn>assistant:' }}{% endif %}"
    condition = random.choice(
        ["", "", "message['role'] == 'assistant'", "'green' in message['content']", "loop.index > 1", "loop.last"]
    )
    inner = f"{{% if {condition} %}}{bad}{{% endif %}}" if condition else bad
    return random.choice([bad + _HEAD + end, _HEAD + end + bad, _HEAD + inner + end, _HEAD + inner + end])


def _edited(random: Random, _: tuple[str, ...]) -> str:
    text = CHAT_TEMPLATE
    if random.random() < 0.3:
        return damage_bytes(random, text.encode()).decode("latin-1")
    old = random.choice(["message['role']", "message['content']", "'<end>'", "messages", "add_generation_prompt"])
    new = random.choice(["message", "none", "messages", "x", "message['x']", "1", "''", "[]", "message.items", "loop"])
    return text.replace(old, new, random.choice([1, 5]))


_OTHERS = (
    "",
    "{{",
    "a" * 10**6,
    "{% for",
    "\x00",
    "{{ messages }}",
    "{% raw %}",
    "<turn>",
    "{#",
    "{{ '<turn>' }}" * 20_000,
)


def damage(case: Case) -> str:
    random = case.random
    ways: list[tuple[Callable[[Random, tuple[str, ...]], str], tuple[str, ...]]] = [
        *[(_whole, snippets) for snippets in (_LOOPS, _ERRORS, _ESCAPES)],
        (_edited, ()),
        (lambda random, texts: random.choice(texts), _OTHERS),
    ]
    make, snippets = random.choices(ways, [8, 6, 4, 4, 1])[0]
    template = make(random, snippets).replace("CANARY", str(case.canary))
    if random.random() < 0.1:
        _write_json(
            case.given / "tokenizer_config.json", random.choice([5, [], {"a": 1}, [template], True, [{"name": 1}]])
        )
        (case.given / FILE).unlink()
        return "a template that is no text"
    (case.given / FILE).write_text(template, encoding="utf-8", newline="")
    return template[:200]


def _write_json(path: Path, template: object) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**values, "chat_template": template}), encoding="utf-8")


def prepare(folder: Path) -> None:
    from tests.hostile.readers.adapters import llama
    from tests.support.pretrained import save_pretrained

    save_pretrained(folder / "model", llama())
    (folder / "model/rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)) + "\n", encoding="utf-8")


def train(case: Case) -> None:
    """`InstructionDataModule.setup`: answers are told from prompts, and every token is one of the tokenizer."""
    from transformers import AutoTokenizer

    from pera_lightning import InstructionDataModule

    files = str(case.given / "rows.jsonl")
    options = {"packing": case.random.random() < 0.3, "max_length": case.random.choice([64, 512])}
    data = InstructionDataModule(files, files, files, tokenizer=str(case.given), batch_size=2, **options)
    data.setup("fit")
    tokenizer = AutoTokenizer.from_pretrained(case.given)
    check_batches(data, tokenizer)


def check_batches(data: object, tokenizer: object) -> None:
    """Labels are what the inputs are, and in them stand the answers."""
    answers = ""
    for batch in data.train_dataloader():  # type: ignore[attr-defined]
        ids, labels = batch["input_ids"], batch["labels"]
        if not ((ids >= 0) & (ids < len(tokenizer))).all():  # type: ignore[arg-type]
            raise Wrong(f"tokens from {ids.min()} to {ids.max()}")
        kept = labels != -100
        if not (labels[kept] == ids[kept]).all():
            raise Wrong("labels are not what they stand at")
        answers += tokenizer.decode(labels[kept])  # type: ignore[attr-defined]
    if not answers:
        raise Wrong("no batch has an answer")


def answer(case: Case) -> None:
    """`generate` with the template in its tokenizer."""
    from pera_lightning.data.chat.prompts import ChatEncoder
    from pera_lightning.loading.pretrained import PretrainedSource
    from pera_lightning.loading.pretrained_tokenizer import load_tokenizer

    tokenizer = load_tokenizer(PretrainedSource(str(case.given)))
    encoder = ChatEncoder(tokenizer, max_length=1_000_000, use_chat_template=True, system_prompt=None)
    ids = encoder.encode_prompt([{"role": "user", "content": "what is green?"}])
    if not ids or not all(0 <= number < len(tokenizer) for number in ids):
        raise Wrong(f"a prompt of the tokens {ids[:10]}")


def warm() -> None:
    import datasets
    import jinja2.sandbox

    import pera_lightning
    import pera_lightning.data.chat.prompts

    pera_lightning.InstructionDataModule  # noqa: B018 - imported late
    assert datasets
    assert jinja2


TEMPLATE = Kind("chat template", prepare, damage, {"InstructionDataModule": train, "generate": answer}, None, warm)
