"""Whatever changes a model while another thread is in the middle of a call of it."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pera_lightning import (
    AdapterSet,
    PeraConfig,
    adapter_disabled,
    adapter_state_dict,
    inject_adapter,
    load_adapter,
    merge_adapter,
    quantize_model,
    remove_adapter,
    save_adapter,
)
from pera_lightning.errors import InjectionError
from tests.support.paused_calls import LONG, Pause, in_thread, is_like, reference
from tests.support.several_adapters import IDS, loaded, network, same_state

Answers = Mapping[str | None, Tensor]


def use(adapters: AdapterSet, name: str | None) -> None:
    with adapters.using(name):
        pass


def disable(model: nn.Module) -> None:
    with adapter_disabled(model):
        pass


# Each with the adapter that is in place afterwards; the one before is "weather".
OF_A_SET: dict[str, tuple[Callable[[AdapterSet, dict[str, Path]], Any], str | None]] = {
    "switch": (lambda adapters, _: adapters.switch("music"), "music"),
    "switch to the base": (lambda adapters, _: adapters.switch(None), None),
    "using": (lambda adapters, _: use(adapters, "music"), "weather"),
    "load": (lambda adapters, folders: adapters.load("new", folders["music"]), "weather"),
    "replace": (lambda adapters, folders: adapters.replace("lora", folders["lora"]), "weather"),
    "mix": (lambda adapters, _: adapters.mix("both", {"music": 0.5, "weather": 0.5}), "weather"),
    "remove": (lambda adapters, _: adapters.remove("weather"), None),
}
OF_A_MODEL: dict[str, tuple[Callable[[Any, dict[str, Path]], Any], str | None]] = {
    "load_adapter": (lambda model, folders: load_adapter(model, folders["weather"]), "weather"),
    "adapter_disabled": (lambda model, _: disable(model), "weather"),
    "merge_adapter": (lambda model, _: merge_adapter(model), "weather"),
    "remove_adapter": (lambda model, _: remove_adapter(model), None),
    "merge of a layer": (lambda model, _: model.first.merge(), "weather"),
}


def check_refused(model: nn.Module, change: Callable[[], Any], before: Tensor, after: Tensor) -> None:
    """A change gives up while a call is in the middle; the call is right, and so is the change after it."""
    pause = Pause(model.get_submodule("norm"))
    call = in_thread(model, IDS)
    pause.wait()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InjectionError, match=r"(?s)thread computes.*a call of Network in thread 'Thread-.*lock"):
        change()
    assert list(state) == list(model.state_dict())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    pause.go_on()
    assert is_like(call.result(LONG), before)
    assert is_like(model(IDS), before)
    change()
    assert is_like(model(IDS), after)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("kind", OF_A_SET)
def test_a_set_leaves_a_running_call_alone(
    adapters: AdapterSet, folders: dict[str, Path], answers: Answers, kind: str
) -> None:
    change, then = OF_A_SET[kind]
    check_refused(adapters.model, lambda: change(adapters, folders), answers["weather"], answers[then])


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("kind", OF_A_MODEL)
def test_functions_leave_a_running_call_alone(folders: dict[str, Path], answers: Answers, kind: str) -> None:
    change, then = OF_A_MODEL[kind]
    model = AdapterSet(loaded(folders["weather"]), name="own").model
    check_refused(model, lambda: change(model, folders), answers["weather"], answers[then])


@pytest.mark.usefixtures("impatient")
def test_an_injection_leaves_a_running_call_alone(folders: dict[str, Path], answers: Answers) -> None:
    model = AdapterSet(network()).model
    check_refused(model, lambda: load_adapter(model, folders["music"]), answers[None], answers["music"])
    model = AdapterSet(network()).model
    check_refused(model, lambda: inject_adapter(model, PeraConfig(2)), answers[None], answers[None])


@pytest.mark.usefixtures("impatient")
def test_quantisation_leaves_a_running_call_alone() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64)).eval()
    AdapterSet(model)
    x = torch.ones(1, 64)
    expected = model(x)
    pause = Pause(model[1])
    call = in_thread(model, x)
    pause.wait()
    with pytest.raises(InjectionError, match="another thread computes"):
        quantize_model(model, "nf4")
    pause.go_on()
    assert torch.equal(call.result(LONG), expected)
    assert type(model[0]) is nn.Linear


def test_without_a_set_nothing_is_waited_for(folders: dict[str, Path], answers: Answers) -> None:
    """And calls pass nothing."""
    model = loaded(folders["weather"])
    assert "_compiled_call_impl" not in vars(model)
    pause = Pause(model.get_submodule("norm"))
    call = in_thread(model, IDS)
    pause.wait()
    start = time.monotonic()
    load_adapter(model, folders["weather"])
    with adapter_disabled(model):
        assert is_like(model(IDS), answers[None])
    assert time.monotonic() - start < LONG
    pause.go_on()
    call.result(LONG)


@pytest.mark.parametrize("kind", ["switch", "using", "load", "replace", "mix", "remove"])
def test_a_change_waits_for_a_call(adapters: AdapterSet, folders: dict[str, Path], answers: Answers, kind: str) -> None:
    change, then = OF_A_SET[kind]
    pause = Pause(adapters.model.norm)
    call = in_thread(adapters.model, IDS)
    pause.wait()
    changed = in_thread(change, adapters, folders)
    time.sleep(0.05)
    assert not changed.done()
    pause.go_on()
    changed.result(LONG)
    assert is_like(call.result(LONG), answers["weather"])
    assert is_like(adapters.model(IDS), answers[then])


def test_a_call_waits_for_a_change(adapters: AdapterSet, answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    middle, end = threading.Event(), threading.Event()
    attach = AdapterSet._put

    def slowly(self: AdapterSet, name: str | None) -> None:
        middle.set()
        assert end.wait(LONG)
        attach(self, name)

    monkeypatch.setattr(AdapterSet, "_put", slowly)
    changed = in_thread(adapters.switch, "music")
    assert middle.wait(LONG)
    # The model is the base at this moment. Other models are nobody's business.
    assert is_like(network()(IDS), answers[None])
    calls = [in_thread(adapters.model, IDS) for _ in range(2)]
    time.sleep(0.05)
    assert not any(call.done() for call in calls)
    end.set()
    changed.result(LONG)
    assert all(is_like(call.result(LONG), answers["music"]) for call in calls)


def test_many_threads(adapters: AdapterSet, answers: Answers) -> None:
    stop = threading.Event()

    def compute() -> list[Tensor]:
        found = []
        with torch.no_grad():
            while not stop.is_set():
                found.append(adapters.model(IDS))
        return found

    calls = [in_thread(compute) for _ in range(4)]
    for name in ("music", None, "lora", "weather") * 12:
        adapters.switch(name)
        assert adapters.active == name
        assert is_like(adapters.model(IDS), answers[name])
    stop.set()
    for call in calls:
        outputs = call.result(LONG)
        assert outputs
        assert all(any(is_like(output, answer) for answer in answers.values()) for output in outputs)


def test_new_values_beside_many_threads(folders: dict[str, Path], tmp_path: Path) -> None:
    """Loading in place, over and over: each answer is of one of the two."""
    other = loaded(folders["weather"])
    for value in adapter_state_dict(other).values():
        value.mul_(-1.5)
    save_adapter(other, tmp_path)
    expected = [reference(folders["weather"]), reference(tmp_path)]
    assert not is_like(*expected)
    model, stop = AdapterSet(loaded(folders["weather"]), name="own").model, threading.Event()

    def compute() -> list[Tensor]:
        found = []
        with torch.no_grad():
            while not stop.is_set():
                found.append(model(IDS))
        return found

    calls = [in_thread(compute) for _ in range(3)]
    for folder in (tmp_path, folders["weather"]) * 10:
        load_adapter(model, folder)
    stop.set()
    for call in calls:
        assert all(any(is_like(output, answer) for answer in expected) for output in call.result(LONG))


def test_a_call_that_fails_is_over(adapters: AdapterSet, answers: Answers) -> None:
    def fail(*_: Any) -> None:
        raise KeyError

    handle = adapters.model.norm.register_forward_hook(fail)
    with pytest.raises(KeyError):
        in_thread(adapters.model, IDS).result(LONG)
    handle.remove()
    start = time.monotonic()
    adapters.switch("music")
    assert time.monotonic() - start < LONG
    assert is_like(adapters.model(IDS), answers["music"])


@pytest.mark.parametrize("place", ["norm", "first", "middle"])
def test_a_hook_cannot_change_its_own_model(adapters: AdapterSet, answers: Answers, place: str) -> None:
    def switch(*_: Any) -> None:
        adapters.switch("music")

    handle = adapters.model.get_submodule(place).register_forward_hook(switch)
    with pytest.raises(InjectionError, match="from within its own forward pass"):
        adapters.model(IDS)
    handle.remove()
    assert is_like(adapters.model(IDS), answers["weather"])


def test_a_model_may_switch_itself_before_it_computes(adapters: AdapterSet, answers: Answers) -> None:
    """Nothing is in between: a hook of the whole model, or a layer around it."""
    handle = adapters.model.register_forward_pre_hook(lambda *_: adapters.switch("lora"))
    assert is_like(adapters.model(IDS), answers["lora"])
    handle.remove()

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = adapters.model

        def forward(self, ids: Tensor) -> Tensor:
            with adapter_disabled(self.model):
                plain = self.model(ids)
            return torch.stack([plain, self.model(ids)])

    plain, adapted = Twice()(IDS)
    assert is_like(plain, answers[None])
    assert is_like(adapted, answers["lora"])


@pytest.mark.usefixtures("impatient")
def test_a_call_of_a_module_around_the_model(adapters: AdapterSet, answers: Answers) -> None:
    """Two calls of the model; within a block both are of one adapter."""
    pause = Pause(nn.Identity())

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = adapters.model

        def forward(self, ids: Tensor) -> Tensor:
            first = self.model(ids)
            pause.stop()
            return torch.stack([first, self.model(ids)])

    def call_twice() -> Tensor:
        with adapters.using("weather"):
            result: Tensor = Twice()(IDS)
            return result

    call = in_thread(call_twice)
    pause.wait()
    with pytest.raises(InjectionError, match="rely on how it is"):
        adapters.switch("music")
    pause.go_on()
    assert all(is_like(output, answers["weather"]) for output in call.result(LONG))


def test_other_models_go_on(adapters: AdapterSet, folders: dict[str, Path]) -> None:
    """What another model does neither waits nor is waited for: copies have nothing in common."""
    other = copy.deepcopy(adapters)
    pause = Pause(other.model.norm)
    call = in_thread(other.model, IDS)
    pause.wait()
    adapters.switch("music")
    assert same_state(adapters.model, loaded(folders["music"]))
    pause.go_on()
    assert is_like(call.result(LONG), reference(folders["weather"]))
