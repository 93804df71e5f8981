"""`AdapterSet.using` and `adapter_disabled` in several threads, tasks and generators."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pera_lightning import AdapterSet, adapter_disabled, load_adapter
from pera_lightning.errors import InjectionError
from tests.support.paused_calls import LONG, Pause, in_thread, is_like
from tests.support.several_adapters import IDS, loaded, same_state

Answers = Mapping[str | None, Tensor]


def answer(adapters: AdapterSet, name: str | None) -> Tensor:
    with torch.no_grad(), adapters.using(name) as model:
        return model(IDS)


class Held:
    """A block in a thread of its own, until `end`."""

    def __init__(self, block: AbstractContextManager[object]) -> None:
        self._begun, self._end = threading.Event(), threading.Event()
        self.future = in_thread(self._hold, block)
        while not self._begun.is_set():
            assert not self.future.done() or self.future.result()
            time.sleep(0.001)

    def _hold(self, block: AbstractContextManager[object]) -> None:
        with block:
            self._begun.set()
            assert self._end.wait(LONG)

    def end(self) -> None:
        self._end.set()
        self.future.result(LONG)


def test_threads_that_want_different_adapters(adapters: AdapterSet, answers: Answers) -> None:
    def often(name: str | None) -> list[Tensor]:
        return [answer(adapters, name) for _ in range(8)]

    calls = {name: in_thread(often, name) for name in answers}
    for name, call in calls.items():
        assert all(is_like(output, answers[name]) for output in call.result(LONG))
    assert adapters.active == "weather"


@pytest.mark.usefixtures("impatient")
def test_a_block_keeps_others_from_changing(adapters: AdapterSet, folders: dict[str, Path], answers: Answers) -> None:
    held = Held(adapters.using("music"))
    for change in (
        lambda: adapters.switch("lora"),
        lambda: answer(adapters, None),
        lambda: adapters.remove("music"),
        lambda: load_adapter(adapters.model, folders["music"]),
        lambda: adapter_disabled(adapters.model).__enter__(),
    ):
        with pytest.raises(InjectionError, match=r"(?s)rely on how it is.*in thread 'Thread-.*lock"):
            change()
    assert same_state(adapters.model, loaded(folders["music"]))
    held.end()
    assert adapters.active == "weather"
    assert is_like(answer(adapters, "lora"), answers["lora"])


def test_blocks_with_the_same_adapter_run_side_by_side(adapters: AdapterSet, answers: Answers) -> None:
    first = Held(adapters.using("music"))
    second = Held(adapters.using("music"))
    assert is_like(answer(adapters, "music"), answers["music"])
    first.end()
    # For the second one it stays in place; the last one to leave brings back what was before the first.
    assert adapters.active == "music"
    second.end()
    assert adapters.active == "weather"
    assert is_like(adapters.model(IDS), answers["weather"])


def test_disabled_blocks_run_side_by_side(adapters: AdapterSet, answers: Answers) -> None:
    first, second = (Held(adapter_disabled(adapters.model)) for _ in range(2))
    first.end()
    assert is_like(adapters.model(IDS), answers[None])
    second.end()
    assert is_like(adapters.model(IDS), answers["weather"])


@pytest.mark.usefixtures("impatient")
def test_an_inner_block_is_not_left_to_others(adapters: AdapterSet, answers: Answers) -> None:
    """The outer block is to go on with its own adapter: it waits for the other thread, and says so in vain."""
    with adapters.using("music"):
        inner = adapters.using("lora")
        inner.__enter__()
        other = Held(adapters.using("lora"))
        with pytest.raises(InjectionError, match="rely on how it is"):
            inner.__exit__(None, None, None)
        assert adapters.active == "lora"
        other.end()
    assert adapters.active == "weather"
    assert is_like(adapters.model(IDS), answers["weather"])


@pytest.mark.usefixtures("impatient")
def test_an_end_beside_a_long_call(adapters: AdapterSet, answers: Answers) -> None:
    block = adapters.using("music")
    pause = Pause(block.__enter__().norm)
    call = in_thread(adapters.model, IDS)
    pause.wait()
    with pytest.raises(InjectionError, match="another thread computes"):
        block.__exit__(None, None, None)
    assert adapters.active == "music"
    pause.go_on()
    assert is_like(call.result(LONG), answers["music"])
    adapters.switch("weather")
    assert is_like(adapters.model(IDS), answers["weather"])


@pytest.mark.usefixtures("impatient")
def test_two_that_wait_for_each_other(adapters: AdapterSet, answers: Answers) -> None:
    """Neither can have what it wants: both are told soon."""
    meet = threading.Barrier(2, timeout=LONG)

    def nested(name: str) -> None:
        with adapters.using("music"):
            meet.wait()
            with pytest.raises(InjectionError, match="rely on how it is"), adapters.using(name):
                pass
            meet.wait()

    for call in [in_thread(nested, name) for name in ("lora", "weather")]:
        call.result(LONG)
    assert adapters.active == "weather"
    assert is_like(adapters.model(IDS), answers["weather"])


def test_tasks_of_one_thread(adapters: AdapterSet, answers: Answers) -> None:
    async def compute(name: str | None, lock: asyncio.Lock | None) -> list[Tensor]:
        outputs = []
        async with lock or asyncio.Lock():
            with adapters.using(name) as model:
                for _ in range(3):
                    outputs.append(model(IDS))
                    await asyncio.sleep(0)
        return outputs

    async def both(names: list[str | None], lock: asyncio.Lock | None) -> list[list[Tensor] | BaseException]:
        return await asyncio.gather(*(compute(name, lock) for name in names), return_exceptions=True)

    names: list[str | None] = ["music", "lora"]
    start = time.monotonic()
    outputs, error = asyncio.run(both(names, None))
    assert isinstance(outputs, list)
    assert all(is_like(output, answers["music"]) for output in outputs)
    # At once: the task that it would wait for cannot go on before it does.
    assert isinstance(error, InjectionError)
    assert "task 'Task-" in str(error)
    assert time.monotonic() - start < LONG
    for wanted in (names, ["lora", "lora"]):
        found = asyncio.run(both(wanted, asyncio.Lock() if wanted is names else None))
        for name, outputs in zip(wanted, found, strict=True):
            assert isinstance(outputs, list)
            assert all(is_like(output, answers[name]) for output in outputs)
    assert adapters.active == "weather"


def test_tasks_within_a_block(adapters: AdapterSet, answers: Answers) -> None:
    """They know its context, and are not within it."""

    async def switch() -> None:
        adapters.switch("lora")

    async def main() -> Tensor:
        with adapters.using("music") as model:
            with pytest.raises(InjectionError, match="rely on how it is"):
                await asyncio.create_task(switch())
            return model(IDS)

    assert is_like(asyncio.run(main()), answers["music"])


def test_generators_that_run_in_turns(adapters: AdapterSet) -> None:
    def stream(name: str) -> Iterator[Tensor]:
        with adapters.using(name) as model:
            yield model(IDS)
            yield model(IDS)

    one, other = stream("music"), stream("lora")
    next(one), next(other), next(one)
    with pytest.raises(InjectionError, match="another order"):
        next(one)
    list(other)
    assert adapters.active == "weather"


def test_copies_within_a_block(adapters: AdapterSet, answers: Answers) -> None:
    with adapters.using("music"):
        copies = [copy.deepcopy(adapters), pickle.loads(pickle.dumps(adapters))]
        for other in copies:
            assert is_like(in_thread(answer, other, "lora").result(LONG), answers["lora"])
            assert other.active == "music"
        assert is_like(adapters.model(IDS), answers["music"])
    assert adapters.active == "weather"


def test_nothing_is_left_behind(adapters: AdapterSet, folders: dict[str, Path]) -> None:
    from pera_lightning.concurrency import turns

    with pytest.raises(KeyError), adapters.using("music"), adapter_disabled(adapters.model):
        raise KeyError
    assert same_state(adapters.model, loaded(folders["weather"]))
    assert turns.present_turns == []
    assert turns._enclosing.get() == ()
    assert not any(guard.running or guard.changes or guard.waiting for guard in turns.register.guards.values())
    assert torch.nn.Module._compiled_call_impl is None
