"""Chat templates of others rendered in a process of their own, with bounds on time, memory and text.

A template is a program that comes with a model. The sandbox it runs in keeps it from files and from the interpreter,
and not from loops without an end; nor can it be told from its text, or from how it renders one row, what another row
does.
"""

from __future__ import annotations

import atexit
import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pera_lightning.errors import ConfigError

SECONDS = 1.0
"""Of computing, for one rendering; real ones take milliseconds."""
_MEMORY = 256 << 20
_LONGEST = 100
_WALL_SECONDS = 10.0
"""For all that is asked at once, where a process cannot be told to end itself (Windows)."""
_READY, _DIED = b"true\n", b"null\n"
_WORKER = Path(__file__).with_name("template_worker.py")


class Rendering(NamedTuple):
    """What is rendered: turns, whether the next answer's beginning is asked for, and what the template gets besides."""

    messages: list[Any]
    generation_prompt: bool
    variables: dict[str, Any]


class Refusal(NamedTuple):
    """Why there is no text."""

    reason: str


def render_apart(
    template: str, special_tokens: Mapping[str, str], renderings: Sequence[Rendering]
) -> list[str | Refusal] | None:
    """Render each with a template, as transformers does.

    Args:
        template: The template (Jinja).
        special_tokens: The tokenizer's special tokens, by the names that templates know.
        renderings: What to render.

    Returns:
        A text for each, or None where one of them took too long or too much memory.

    Raises:
        ConfigError: No such process can be started.
    """
    with _LOCK:
        return _process().render(template, special_tokens, renderings)


class _Process:
    def __init__(self) -> None:
        self.owner = os.getpid()
        command = [sys.executable or "python", "-P", "-W", "ignore", str(_WORKER)]
        limits = [str(SECONDS), str(_MEMORY), str(_LONGEST)]
        try:
            self._process = subprocess.Popen(
                command + limits,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            reason = self._ask(pickle.dumps(list(sys.path)))
        except OSError as error:
            raise _not_started(error) from error
        if reason != _READY:
            self.end()
            raise _not_started(reason.decode(errors="replace").strip() or "it ended at once")

    @property
    def usable(self) -> bool:
        return self.owner == os.getpid() and self._process.poll() is None

    def render(
        self, template: str, special_tokens: Mapping[str, str], renderings: Sequence[Rendering]
    ) -> list[str | Refusal] | None:
        try:
            question = pickle.dumps((template, dict(special_tokens), [tuple(rendering) for rendering in renderings]))
        except Exception as error:  # whatever a value in a row does, such as lists within lists within lists
            return [Refusal(f"a value cannot be handed over: {error}")] if len(renderings) == 1 else None
        answer = self._ask(question)
        if not answer.endswith(b"\n"):
            self.end()
            return None
        if answer == _DIED:
            return None
        return [parts[0] if len(parts) == 1 else Refusal(parts[1]) for parts in json.loads(answer)]

    def end(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            try:
                stream.close()
            except OSError:  # what it was not there to read
                continue
        if self.owner == os.getpid():
            self._process.kill()
            self._process.wait()

    def _ask(self, question: bytes) -> bytes:
        """The line that answers; less than a line if the process ended before."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(question)
            stdin.flush()
            if os.name == "posix":  # it ends itself
                return stdout.readline()
            watch = threading.Timer(_WALL_SECONDS, self._process.kill)
            watch.start()
            try:
                return stdout.readline()
            finally:
                watch.cancel()
        except OSError:  # it ended before it had read all
            return b""


_LOCK = threading.Lock()
_present: _Process | None = None


def _process() -> _Process:
    """The process of this one; a fork starts its own."""
    global _present
    if _present is None or not _present.usable:
        end_process()
        _present = _Process()
    return _present


def end_process() -> None:
    """End the process, if there is one; the next rendering starts another."""
    global _present
    if _present is not None:
        _present.end()
        _present = None


def _not_started(reason: object) -> ConfigError:
    return ConfigError(
        "Chat templates are rendered in a process of their own, and that cannot be started.",
        got=f"{sys.executable or 'no executable of Python'}: {reason}",
        expected="a Python that can import transformers",
        fix="set sys.executable to one, or use_chat_template: false",
    )


atexit.register(end_process)
