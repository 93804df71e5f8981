"""Calls that are compiled, generate many tokens, or go through a module that copies the model."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pera_lightning import AdapterSet, PeraConfig, adapter_disabled, inject_adapter, save_adapter
from pera_lightning.errors import InjectionError
from tests.support.models import randomise_adapter, tiny_llama
from tests.support.paused_calls import LONG, Pause, in_thread, is_like
from tests.support.several_adapters import IDS, loaded, network

Answers = Mapping[str | None, Tensor]
IDS_OF_TEXT = torch.arange(3, 24).view(3, 7)
OPTIONS = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Tensor]]:
    """Two adapters of a language model, each with what the model writes with it alone."""
    made = {}
    for seed, name in enumerate("ab"):
        model = llama()
        inject_adapter(model, PeraConfig(2))
        torch.manual_seed(seed)
        randomise_adapter(model, 1.0)
        folder = tmp_path_factory.mktemp(name)
        save_adapter(model, folder)
        made[name] = folder, model.generate(IDS_OF_TEXT, **OPTIONS)
    assert not torch.equal(made["a"][1], made["b"][1])
    return made


def llama() -> Any:
    torch.manual_seed(3)
    return tiny_llama().eval()


@pytest.mark.usefixtures("impatient")
def test_generate_is_one_call(llamas: dict[str, tuple[Path, Tensor]]) -> None:
    adapters = AdapterSet(llama())
    for name, (folder, _) in llamas.items():
        adapters.load(name, folder)
    adapters.switch("a")
    # Between two tokens: no forward pass runs at this moment.
    pause = Pause(nn.Identity())

    def between(ids: Tensor, scores: Tensor) -> Tensor:
        if ids.shape[1] == IDS_OF_TEXT.shape[1] + 2:
            pause.stop()
        return scores

    call = in_thread(adapters.model.generate, IDS_OF_TEXT, logits_processor=[between], **OPTIONS)
    pause.wait()
    with pytest.raises(InjectionError, match="generate of LlamaForCausalLM in thread"):
        adapters.switch("b")
    pause.go_on()
    assert torch.equal(call.result(LONG), llamas["a"][1])
    adapters.switch("b")
    assert torch.equal(adapters.model.generate(IDS_OF_TEXT, **OPTIONS), llamas["b"][1])


def test_generate_beside_switches(llamas: dict[str, tuple[Path, Tensor]]) -> None:
    adapters = AdapterSet(llama())
    for name, (folder, _) in llamas.items():
        adapters.load(name, folder)
    adapters.switch("a")
    calls = [in_thread(lambda: [adapters.model.generate(IDS_OF_TEXT, **OPTIONS) for _ in range(6)]) for _ in range(2)]
    while not all(call.done() for call in calls):
        for name in "ba":
            adapters.switch(name)
    texts = [text for call in calls for text in call.result(LONG)]
    assert all(any(torch.equal(text, wanted) for _, wanted in llamas.values()) for text in texts)


def compiled(way: str, model: nn.Module) -> nn.Module:
    if way == "in place later":
        return model
    if way == "in place":
        model.compile(backend="eager")
        return model
    made: Any = torch.compile(model, backend="eager")
    return nn.Sequential(made) if way == "within" else made


@pytest.mark.parametrize("way", ["around", "in place", "within"])
def test_a_compiled_call_waits_for_a_change(
    folders: dict[str, Path], answers: Answers, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    model = compiled(way, network())
    # Compiled around the model of the set, and around that one.
    inner: Any = model[0]._orig_mod if way == "within" else model
    adapters = AdapterSet(inner)
    for name, folder in folders.items():
        adapters.load(name, folder)
    adapters.switch("weather")
    with torch.no_grad():
        assert is_like(model(IDS), answers["weather"])
        middle, end = threading.Event(), threading.Event()
        put = AdapterSet._put

        def slowly(self: AdapterSet, name: str | None) -> None:
            middle.set()
            assert end.wait(LONG)
            put(self, name)

        monkeypatch.setattr(AdapterSet, "_put", slowly)
        changed = in_thread(adapters.switch, "music")
        assert middle.wait(LONG)
        call = in_thread(model, IDS)
        time.sleep(0.05)
        assert not call.done()
        end.set()
        changed.result(LONG)
        assert is_like(call.result(LONG), answers["music"])


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("way", ["around", "in place", "in place later", "within"])
def test_a_compiled_call_is_left_alone(folders: dict[str, Path], answers: Answers, way: str) -> None:
    pause = Pause(nn.Identity())
    stop = torch.compiler.disable(pause.stop)

    plain: Any = network()
    plain.norm.register_forward_pre_hook(lambda *_: stop())
    model: Any = compiled(way, plain)
    adapters = AdapterSet(model[0]._orig_mod if way == "within" else model)
    if way == "in place later":
        # In the place of the guard; the next change puts it back around.
        model.compile(backend="eager")
    for name in ("weather", "lora"):
        adapters.load(name, folders[name])
    adapters.switch("weather")
    call = in_thread(model, IDS)
    pause.wait()
    with pytest.raises(InjectionError, match="another thread computes"):
        adapters.switch("lora")
    pause.go_on()
    assert is_like(call.result(LONG), answers["weather"])
    adapters.switch("lora")
    assert is_like(model(IDS), answers["lora"])


def test_a_compiled_model_stays_one_graph(folders: dict[str, Path], answers: Answers) -> None:
    """Nothing of a change is traced, nor does a compiled model compute anything else for it."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    adapters = AdapterSet(network())
    for name, folder in folders.items():
        adapters.load(name, folder)
    model = torch.compile(adapters.model, backend=backend, fullgraph=True)
    adapters.switch("weather")
    alone = torch.compile(loaded(folders["weather"]), backend=backend, fullgraph=True)
    with torch.no_grad():
        assert is_like(model(IDS), answers["weather"])
        # The same code serves a model that holds this adapter alone.
        assert is_like(alone(IDS), answers["weather"])
        with adapter_disabled(adapters.model):
            pass
        assert is_like(model(IDS), answers["weather"])
    assert len(graphs) == 1


def python_calls(function: Any) -> list[str]:
    """Names of the functions of Python that are entered."""
    found: list[str] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            found.append(frame.f_code.co_qualname)

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return found


@torch.no_grad()
def test_what_a_call_does_for_it(adapters: AdapterSet, folders: dict[str, Path]) -> None:
    """It takes a lock and writes itself down; no layer does anything, nor does a model without a set."""
    alone, plain = loaded(folders["weather"]), network()
    # The first call keeps expanded factors for the next ones.
    alone(IDS), adapters.model(IDS)
    expected, of_base = (python_calls(lambda model=model: model(IDS))[1:] for model in (alone, plain))
    assert "PeraLinear.forward" in expected
    assert not any("Guard" in name for name in expected)
    model, counting = adapters.model, ["Guard.__call__", "is_dynamo_compiling", "Guard.count"]
    for _ in range(2):
        own = python_calls(lambda: model(IDS))[1:]
        assert [name for name in own if name not in counting] == expected
        assert len(own) == len(expected) + len(counting)
        adapters.switch(None)
        assert len(python_calls(lambda: model(IDS))[1:]) == len(of_base) + len(counting)
        adapters.switch("weather")
        model(IDS)


def test_copies_have_no_guards(llamas: dict[str, tuple[Path, Tensor]]) -> None:
    """Neither they nor the methods they have of their model lead back to it; a copied set guards its own."""
    adapters = AdapterSet(llama())
    adapters.load("a", llamas["a"][0])
    adapters.switch("a")
    model = adapters.model
    assert inspect.signature(model.generate) == inspect.signature(type(model).generate.__get__(model))
    assert model.generate.__self__ is model
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(copy.deepcopy(model))):
        assert vars(other).get("_compiled_call_impl") is None
        # As none of the layers is shared, it goes on while the model changes.
        with torch.no_grad():
            next(model.parameters()).add_(1)
        assert torch.equal(other.generate(IDS_OF_TEXT, **OPTIONS), llamas["a"][1])
        with torch.no_grad():
            next(model.parameters()).sub_(1)
    for again in (copy.deepcopy(adapters), pickle.loads(pickle.dumps(adapters))):
        assert torch.equal(again.model.generate(IDS_OF_TEXT, **OPTIONS), llamas["a"][1])
        assert vars(again.model)["_compiled_call_impl"] is not vars(model)["_compiled_call_impl"]


def test_a_model_is_gone_with_its_last_user() -> None:
    model = AdapterSet(network()).model
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_replicas_of_a_model(adapters: AdapterSet, answers: Answers) -> None:
    """As DataParallel does: copies of the modules compute themselves, with parameters of their own."""
    replica: Any = adapters.model._replicate_for_data_parallel()
    for name, child in adapters.model._modules.items():
        assert child is not None
        replica._modules[name] = child._replicate_for_data_parallel()
        replica._modules[name]._parameters = dict(child._parameters)
    base = replica._modules["out"]
    base._parameters["bias"] = base._parameters["bias"] + 1
    assert is_like(replica(IDS), answers["weather"] + 1)
    assert is_like(adapters.model(IDS), answers["weather"])
