"""A program that renders chat templates: what a template takes of time and memory ends with the process.

`template_process.py` starts it and says what it may take. It reads where modules are and then batches of renderings,
pickled, from its standard input, and answers each with a line of JSON: the texts, or null where it took too
much. Nothing of pera_lightning is imported here, for starting it is to be quick.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
from contextlib import suppress
from typing import Any, BinaryIO

try:
    import resource
    import signal
except ImportError:  # Windows: the process that started this one ends it
    resource = None  # type: ignore[assignment]


def main(seconds: float, memory: int, longest: int) -> None:
    """Answers batches until the input ends.

    Args:
        seconds: Of computing for one rendering; the process dies of more.
        memory: Bytes for all that is rendered, beside what the process takes before; it ends itself for want of more.
        longest: Characters of a rendered text for each byte that describes the rendering, and 10,000 times as many.
    """
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    # Behind its own: what lies beside a script must not take the place of a module.
    sys.path += [path for path in pickle.load(sys.stdin.buffer) if path not in sys.path]
    try:
        from transformers.tokenization_utils_base import PreTrainedTokenizerBase
    except Exception as error:  # whatever an import raises: the other side reports it
        _answer(answers, f"{type(error).__name__}: {error}")
        return

    class Tokenizer:
        """As much of a tokenizer as rendering needs."""

        get_chat_template = PreTrainedTokenizerBase.get_chat_template
        apply_chat_template = PreTrainedTokenizerBase.apply_chat_template

        def __init__(self, chat_template: str, special_tokens_map: dict[str, str]) -> None:
            self.chat_template, self.special_tokens_map = chat_template, special_tokens_map

    _limit_memory(memory)
    _answer(answers, True)
    while resource is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # meant for the process that waits for answers
        # A copy of this process, for what ends it costs only the copy: starting anew takes a second.
        copy = os.fork()
        if copy == 0:
            break
        if os.waitpid(copy, 0)[1] == 0:
            return
        _answer(answers, None)
    while True:
        try:
            template, special, batch = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        tokenizer: Any = Tokenizer(template, special)
        _answer(answers, [_rendered(tokenizer, arguments, seconds, longest) for arguments in batch])


def _rendered(tokenizer: Any, arguments: tuple[Any, bool, Any], seconds: float, longest: int) -> list[str]:
    """The text alone, or why there is none behind an empty one."""
    messages, generation_prompt, variables = arguments
    _limit_time(seconds)
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=generation_prompt, **variables
        )
        if not isinstance(text, str):
            return ["", f"it renders to {type(text).__name__}"]
        most = longest * (10_000 + len(pickle.dumps(arguments)))
        if len(text) > most:
            return ["", f"it renders {len(text):,} characters, where {most:,} would be many"]
        text.encode()
    except MemoryError:
        os._exit(1)
    except Exception as error:  # whatever a template does
        own = type(error).__module__.startswith("jinja2")
        return ["", f"{'' if own else f'{type(error).__name__}: '}{error}"[:2_000]]
    finally:
        _limit_time(0)
    return [text]


def _limit_time(seconds: float) -> None:
    if resource is not None:
        # Of this process, whatever others do on the machine. The signal ends it, also amidst one long multiplication.
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _limit_memory(more: int) -> None:
    if resource is None:
        return
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, ValueError), open("/proc/self/statm", encoding="ascii") as file:
        present = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (present + more, present + more))


def _answer(stream: BinaryIO, content: object) -> None:
    stream.write(json.dumps(content).encode("ascii") + b"\n")
    stream.flush()


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
