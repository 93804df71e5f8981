"""Patterns out of files are matched as `re` would, or not at all, and never for long."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable

import pytest

from pera_lightning import PeraConfig, inject_adapter
from pera_lightning.errors import ConfigError, TargetError
from pera_lightning.patterns import FirstMatch, LinearMatcher, literal
from tests.support.models import tiny_llama

NAMES = [
    f"model.layers.{block}.{part}"
    for block in (0, 1, 11)
    for part in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "mlp.experts.12.up")
]
ORDINARY = [
    r"model\.layers\.1\.mlp\.up_proj",
    r".*\.(q|v)_proj",
    r"layers\.\d+\.mlp\..+",
    r"^model\.layers\.[02468]\..*",
    r"(self_attn|mlp)\.(?:q_proj|up_proj)$",
    r"experts\.[0-9]{1,2}\.up",
    r"[^.]+_proj",
    r"\w+|\d+",
    r"1|2",
    r"q_pro?j",
]
ENDLESS = [
    r"(([a-z_0-9]+\.?)+)+!",
    r"(a|a|[a-z._0-9]+)*!",
    r"(.*)*(.*)*(.*)*!",
    r"(?:(?:[a-z]+_?)+\.?)+!",
    r"((.+)+\.)+!",
    ".*" * 490 + "!",
    "(.?){400}" * 100,
    "(a?){300}" * 90,
    "(" * 480 + "a" + ")" * 480,
    "(?i)" + "[\u0100-\U0010ffff]" * 180,
    r"(.*)(.*)(.*)(.*)(.*)\1\2\3\4\5!",
    r"(?=(.+)+!)" * 20,
    "a{99999999999999999999}",
    "(?:" * 100 + "a" + "){100}" * 100,
    "[",
    "(?P<",
    "\\",
    "\ud800+",
]


@pytest.fixture(scope="module", autouse=True)
def package() -> None:
    LinearMatcher().match("(a)", "a")


@pytest.mark.parametrize("pattern", ORDINARY)
def test_ordinary_expressions_match_as_in_peft(pattern: str) -> None:
    found = FirstMatch({pattern: True}, LinearMatcher())
    for name in NAMES:
        # The line of peft.utils.other.get_pattern_key.
        assert found.value(name, False) == bool(re.match(rf"(.*\.)?({pattern})$", name)), name
        assert LinearMatcher().full_match(pattern, name) == bool(re.fullmatch(pattern, name)), name


def test_the_first_pattern_counts_plain_or_not() -> None:
    choice = random.Random(7)
    plain = ["q_proj", "self_attn.k_proj", "mlp.up_proj", "layers.1.mlp.up_proj", "up"]
    for _ in range(50):
        patterns = choice.sample([*plain, *ORDINARY], 6)
        found = FirstMatch({pattern: index for index, pattern in enumerate(patterns)}, LinearMatcher())
        for name in NAMES:
            right = [index for index, key in enumerate(patterns) if re.match(rf"(.*\.)?({key})$", name)]
            assert found.value(name, -1) == (right[0] if right else -1), (patterns, name)


def test_names_with_dots_match_as_in_peft() -> None:
    choice = random.Random(9)
    for _ in range(300):
        parts = [choice.choice(NAMES) for _ in range(4)]
        starts = [part[choice.randrange(len(part)) :] for part in parts]
        patterns = ["".join(choice.choice([sign, sign, "."]) for sign in start) for start in starts]
        patterns = list(dict.fromkeys(patterns))
        found = FirstMatch({pattern: index for index, pattern in enumerate(patterns)}, LinearMatcher())
        for name in NAMES:
            right = [index for index, key in enumerate(patterns) if re.match(rf"(.*\.)?({key})$", name)]
            assert found.value(name, -1) == (right[0] if right else -1), (patterns, name)


def test_a_name_with_signs_of_expressions_is_looked_up_as_it_is() -> None:
    assert FirstMatch({"a+b": 1, "c": 2}, LinearMatcher()).value("a+b", 0) == 1
    assert FirstMatch({"a+b": 1, "c": 2}, LinearMatcher()).value("x.a+b", 0) == 0


@pytest.mark.parametrize("pattern", ["q_pro(j{,3})", "[[:alpha:]]+_proj"])
def test_what_re2_reads_otherwise_is_not_matched(pattern: str) -> None:
    with pytest.raises(ConfigError, match="otherwise than Python"):
        FirstMatch({pattern: 1}, LinearMatcher()).value("q_proj", 0)


def test_names_with_all_their_dots_elsewhere_take_no_longer() -> None:
    choice = random.Random(3)
    patterns = {f"{choice.getrandbits(400):0400b}".translate({48: "."}): 1 for _ in range(5_000)}
    found = FirstMatch(patterns, LinearMatcher())
    with pytest.raises(ConfigError, match="take too long"):
        sum(found.value(f"{number:0400}", 0) for number in range(1_000))


def bounded(call: Callable[[], object]) -> None:
    """It gives an answer or an error of ours, within a few seconds of this process."""
    start = time.process_time()
    try:
        call()
    except ConfigError:
        pass
    except TargetError as error:
        assert "matches no module" in str(error) or "no adapted layer" in str(error)  # noqa: PT017
    assert time.process_time() - start < 4


@pytest.mark.parametrize("pattern", ENDLESS, ids=range(len(ENDLESS)))
def test_no_expression_out_of_a_file_takes_long(pattern: str) -> None:
    model = tiny_llama()
    stored = {**PeraConfig().to_dict(), "target_modules": pattern, "rank_pattern": {pattern: 2}}
    config = PeraConfig.from_dict(stored)
    assert config.to_dict() == stored
    bounded(lambda: inject_adapter(model, config))
    bounded(lambda: FirstMatch({pattern: 1}, LinearMatcher()).value("model.layers.0.self_attn.q_proj" * 9, 0))


def test_many_expressions_out_of_a_file_take_as_long_as_one() -> None:
    patterns = {f"(.?){{100}}{number}y.*" * 8: number for number in range(900)}
    found = FirstMatch(patterns, LinearMatcher())
    with pytest.raises(ConfigError, match="take too long"):
        sum(found.value(f"layers.{number}.q_proj", 0) for number in range(5_000))
    with pytest.raises(ConfigError, match="too many regular expressions"):
        FirstMatch({f"a+{number}": number for number in range(1_001)}, LinearMatcher())


def test_many_plain_names_are_looked_up() -> None:
    found = FirstMatch({f"layers.{number}.up": number for number in range(50_000)}, LinearMatcher())
    start = time.process_time()
    assert all(found.value(f"model.layers.{number}.up", -1) == number for number in range(0, 50_000, 5))
    assert time.process_time() - start < 2


def test_what_a_user_types_keeps_all_features() -> None:
    config = PeraConfig(target_modules=r"(?!.*layers\.0\.).*\.([qk])_proj", rank_pattern={r".*(?<=q)_proj": 3})
    report = inject_adapter(tiny_llama(), config)
    assert report.adapted == ("model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.k_proj")
    with pytest.raises(ConfigError, match=r"(?s)bounded time.*in code"):
        inject_adapter(tiny_llama(), PeraConfig.from_dict(config.to_dict()))


@pytest.mark.parametrize("pattern", ["a" * 1_001, "(" * 10, "a{99999999999999999999}", "(" * 500 + ")" * 500])
def test_what_a_user_types_is_checked_at_once(pattern: str) -> None:
    for options in ({"target_modules": pattern}, {"exclude_modules": pattern}, {"rank_pattern": {pattern: 2}}):
        try:
            PeraConfig(**options)  # type: ignore[arg-type]
        except ConfigError as error:
            assert next(iter(options)) in str(error)  # noqa: PT017
        else:
            re.compile(pattern)


def test_a_literal_means_one_name() -> None:
    for name in ("model.layers.0.q_proj", "a+b.(c", "x y", "é.ü-1"):
        assert re.fullmatch(literal(name), name)
    assert literal("model.layers.0.q_proj") == "model.layers.0.q_proj"
    assert not re.fullmatch(literal("a+b"), "aab")
