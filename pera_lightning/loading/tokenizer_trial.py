"""Tokenizers of others are tried before they are used: once in a process of its own, then once in this one.

A tokenizer file is a program of normalisers, expressions and decoders. It can take hours and all memory for one word,
and its library ends some files with a panic, which is no Exception of Python.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pera_lightning.errors import DataError, PeraError, shown
from pera_lightning.form_bounds import MAX_TOKEN, is_number, is_whole

SECONDS = 10.0
"""Of computing, for reading the file and for the trial; the largest take one."""
_MEMORY = 8 << 30
_WALL_SECONDS = 120.0
"""Where a process cannot be told to end itself (Windows)."""
_WORKER = Path(__file__).with_name("tokenizer_worker.py")
_PROBES = ("a", "The quick brown fox? 12 345\n", "")


class TokenizerDamage(Exception):
    """A tokenizer that cannot be used, and why."""


def is_panic(error: BaseException) -> bool:
    """Whether Rust gave up: a BaseException of a class that cannot be imported."""
    return type(error).__name__ == "PanicException" and type(error).__module__ == "pyo3_runtime"


@contextmanager
def without_panics() -> Iterator[None]:
    """Raise TokenizerDamage in place of a panic."""
    try:
        yield
    except BaseException as error:
        if not is_panic(error):
            raise
        raise TokenizerDamage(f"its library gave up: {error}") from error


@contextmanager
def while_tokenising(where: str) -> Iterator[None]:
    """Raise DataError in place of whatever a tokenizer raises.

    Args:
        where: Which text it is about.
    """
    try:
        with without_panics():
            yield
    except PeraError:
        raise
    except Exception as error:
        raise DataError(
            f"{where}: the tokenizer cannot read the text, or not write it.",
            got=f"{type(error).__name__}: {shown(str(error))}",
            expected="a tokenizer with tokens for every text, or one for what it does not know",
            fix="use another tokenizer, or leave such texts out",
        ) from error


class TokenizerTrial:
    """Tries the files of a tokenizer in processes of their own, which run beside this one until it is asked for.

    Args:
        files: Its files, as the library of tokenizers reads them.
    """

    def __init__(self, files: list[Path]) -> None:
        self._runs = [(file, _started(file)) for file in files if _identity(file) not in _GOOD]

    def check(self) -> None:
        """Raise TokenizerDamage unless all of them passed."""
        try:
            for file, run in self._runs:
                reason = _answer(run)
                if reason is not None:
                    raise TokenizerDamage(f"{file.name}: {reason}")
                _GOOD.add(_identity(file))
        finally:
            for _, run in self._runs:
                if run.poll() is None:
                    run.kill()
                run.communicate()


_GOOD: set[tuple[str, int, int]] = set()
"""Files that passed, as they were then."""


def check_usable(tokenizer: Any) -> None:
    """Try a tokenizer that was loaded: what is asked of it has to be of the right kind.

    Raises:
        TokenizerDamage: It cannot be used for any text.
    """
    if not is_number(tokenizer.model_max_length):
        raise TokenizerDamage(f"its model_max_length is {shown(tokenizer.model_max_length)}")
    problems = [_problem(tokenizer, text) for text in _PROBES]
    if not all(problems):
        return
    # Some know only the texts of their own vocabulary.
    added = tokenizer.get_added_vocab()
    known = itertools.islice((token for token in tokenizer.get_vocab() if token not in added), 100)
    if all(_problem(tokenizer, token) for token in known):
        raise TokenizerDamage(f"it can read no text: {problems[0]}")


def _problem(tokenizer: Any, text: str) -> str | None:
    try:
        with without_panics():
            ids = tokenizer(text, verbose=False)["input_ids"]
            tokenizer.decode(ids, skip_special_tokens=True)
    except TokenizerDamage:
        raise
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    wrong = next((token for token in ids if not is_whole(token) or not 0 <= token <= MAX_TOKEN), None)
    if wrong is not None:
        raise TokenizerDamage(f"it makes {shown(wrong)} of {shown(text)}, which is no token")
    return None if ids else f"no tokens for {shown(text)}"


def _identity(file: Path) -> tuple[str, int, int]:
    status = file.stat()
    return str(file.absolute()), status.st_mtime_ns, status.st_size


def _started(file: Path) -> subprocess.Popen[bytes]:
    # Without the packages' own start files, which take most of the time; where modules are is told.
    command = [sys.executable or "python", "-P", "-S", "-W", "ignore", str(_WORKER)]
    question = {"path": sys.path, "file": str(file.absolute()), "seconds": SECONDS, "memory": _MEMORY}
    try:
        run = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert run.stdin is not None
        run.stdin.write(json.dumps(question).encode())
        run.stdin.close()
        run.stdin = None
    except OSError as error:
        raise TokenizerDamage(f"it cannot be tried, for no process can be started: {error}") from error
    return run


def _answer(run: subprocess.Popen[bytes]) -> str | None:
    try:
        answer, _ = run.communicate(timeout=_WALL_SECONDS)
        reason = json.loads(answer)
    except (subprocess.TimeoutExpired, ValueError):
        return f"it takes more than {SECONDS:g} s of computing, or too much memory"
    return None if reason is None else str(reason)
