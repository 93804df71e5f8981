"""A program that tries a tokenizer file once: what the file takes of time and memory ends with the process.

`tokenizer_trial.py` starts it. It reads where modules are and which file to try from its standard input, and answers
with a line of JSON: null, or why the file cannot be used. Nothing but the library of tokenizers is imported here, for
starting it is to be quick.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from typing import Any

try:
    import resource
    import signal
except ImportError:  # Windows: the process that started this one ends it
    resource = None  # type: ignore[assignment]

MOST_GROWTH = 1_000
"""What a text may grow to by replacements, in characters for each of its own."""
LONGEST_ADDITION = 1_000
MOST_STEPS = 100
LARGE = 10_000
TEXT = "".join(map(chr, range(32, 127))) + " The quick brown fox? 12 345\n\täöüßéñçøλжשعह中文語あ한😀"
"""Short, with signs of many kinds."""


def main() -> None:
    """Answers once."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    question = json.load(sys.stdin)
    sys.path[:] = question["path"]
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import tokenizers

    _limit(question["seconds"], question["memory"])
    try:
        with open(question["file"], encoding="utf-8") as opened:
            values = json.load(opened)
        reason = _growth(values) or _trial(_loaded(tokenizers.Tokenizer, values, question["file"]))
    # A panic of Rust is no Exception; a text without its unknown token is for the other side to judge.
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"[:2_000]
    json.dump(reason, answers)
    answers.write("\n")
    answers.flush()
    os._exit(0)


def _trial(tokenizer: Any) -> str | None:
    for text in ("", "a", TEXT):
        for special in (False, True):
            try:
                ids = tokenizer.encode(text, add_special_tokens=special).ids
                decoded = tokenizer.decode(ids, skip_special_tokens=special)
            except Exception:  # such as a sign that it has no token for
                continue
            most = MOST_GROWTH * (10 + len(text))
            if max(len(ids), len(decoded)) > most:
                return f"it makes {len(ids):,} tokens and {len(decoded):,} characters of {len(text)}"
    return None


def _loaded(kind: Any, values: dict[str, Any], file: str) -> Any:
    """The tokenizer; of a large vocabulary its single signs, for the rest takes a second to read and none to use."""
    model = values.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict) and len(vocabulary) > LARGE:
        assert isinstance(model, dict)
        kept = {piece: id for piece, id in vocabulary.items() if len(piece) == 1 or piece == model.get("unk_token")}
        small = {**model, "vocab": kept, **({"merges": []} if "merges" in model else {})}
        with suppress(Exception):
            return kind.from_str(json.dumps({**values, "model": small}))
    return kind.from_file(file)


def _growth(values: dict[str, Any]) -> str | None:
    """What replacements one behind the other would make of texts that the trial does not have."""
    for part in ("normalizer", "decoder"):
        steps = list(_steps(values.get(part)))
        growth = 1.0
        for step in steps:
            growth *= _factor(step)
            if len(str(step.get("prepend", ""))) > LONGEST_ADDITION:
                return f"its {part} puts {len(str(step['prepend'])):,} characters in front of a text"
        if growth > MOST_GROWTH or len(steps) > MOST_STEPS:
            return f"its {part} of {len(steps):,} steps makes a text up to {growth:.3g} times as long"
    return None


def _steps(part: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    level = [part]
    while level:
        step = level.pop()
        if isinstance(step, dict):
            found.append(step)
            for inner in (step.get("normalizers"), step.get("decoders")):
                level += inner if isinstance(inner, list) else []
    return found


def _factor(step: dict[str, Any]) -> float:
    content, pattern = step.get("content"), step.get("pattern")
    if step.get("type") != "Replace" or not isinstance(content, str) or not content:
        return 1.0
    literal = pattern.get("String") if isinstance(pattern, dict) else None
    # An expression may match between two signs, where nothing makes room for what is put there.
    return max(1.0, len(content) / len(literal)) if literal else 1.0 + len(content)


def _limit(seconds: float, memory: int) -> None:
    if resource is None:
        return
    # Of this process, whatever others do on the machine. The signal ends it, also amidst one long call.
    signal.setitimer(signal.ITIMER_PROF, seconds)
    for limit, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_AS, memory)):
        with suppress(OSError, ValueError):
            resource.setrlimit(limit, (most, most))


if __name__ == "__main__":
    main()
