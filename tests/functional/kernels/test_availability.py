"""Where the kernels run, and what is said where they do not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pera_lightning.errors import ConfigError
from pera_lightning.functional.form import Form
from pera_lightning.functional.fused import fused
from pera_lightning.functional.kernels import adapter, availability, unavailable_reason
from pera_lightning.functional.kernels.launch import Launcher, number_key

GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    for function in (availability._reason, fused._say_once):
        function.cache_clear()
    yield
    for function in (availability._reason, fused._say_once):
        function.cache_clear()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card of compute capability 9.0 for whoever asks."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(torch.version, "hip", None)


@pytest.mark.usefixtures("gpu")
def test_a_card_with_triton_has_them() -> None:
    assert unavailable_reason(GPU) is None


def test_the_meta_device_stands_for_such_a_card() -> None:
    assert unavailable_reason(torch.device("meta")) is None


def test_a_cpu_has_none() -> None:
    assert unavailable_reason(torch.device("cpu")) == "they are for CUDA GPUs, and this is cpu"


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("0", "PERA_KERNELS=0 turns them off"),
        (" Off", "PERA_KERNELS=off turns them off"),
        ("false", "PERA_KERNELS=false turns them off"),
        ("no triton", "triton is not installed"),
        ("old triton", "triton 3.2 is older than 3.4"),
        ("old card", "compute capability 6.1 is below 7.0"),
        ("amd", "they are for CUDA GPUs, and this is an AMD GPU"),
    ],
)
def test_reasons(what: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    switched_off = reason.endswith("turns them off")
    if switched_off:
        monkeypatch.setenv("PERA_KERNELS", what)
    elif what == "no triton":
        monkeypatch.setitem(sys.modules, "triton", None)
    elif what == "old triton":
        monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__="3.2.0"))
    elif what == "old card":
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (6, 1))
    else:
        monkeypatch.setattr(torch.version, "hip", "6.2")
    assert unavailable_reason(GPU) == reason
    # What the user asked for needs no telling; anything else is told once.
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert not any(fused.uses_kernels(GPU) for _ in range(3))
    texts = [str(warning.message) for warning in told]
    line = f"Adapters are computed without fused kernels, which is slower: {reason}."
    assert texts == ([] if switched_off else [line])


def test_a_kernel_asked_for_on_a_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ConfigError, match=r"got: +tensors on cpu: they are for CUDA GPUs, and this is cpu"):
        adapter.AdapterKernels(Form(2, "full", 1.0, (1.0,)), 2, 8, 8, torch.float32, torch.float32, torch.device("cpu"))
    with pytest.raises(ConfigError, match="call pera_linear"):
        adapter.drop(torch.ones(4), torch.tensor([1]), 5, torch.float32)


class Kernel:
    """What `triton.jit` makes, as far as a launcher sees it."""

    function, packed_metadata = "function", "metadata"

    def __init__(self) -> None:
        self.jit: list[tuple[Any, ...]] = []
        self.direct: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def start(*arguments: Any) -> Kernel:
            self.jit.append((grid, *arguments))
            return self

        return start

    def run(self, *arguments: Any) -> None:
        self.direct.append(arguments)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    driver = SimpleNamespace(get_current_stream=lambda device: 7, get_current_device=lambda: 0)
    monkeypatch.setattr("pera_lightning.functional.kernels.launch.driver", SimpleNamespace(active=driver))
    return Kernel()


def test_a_launcher_keeps_what_was_compiled(kernel: Kernel) -> None:
    x = torch.zeros(64)
    launch = Launcher(kernel)
    launch("a", 3, (x,), 7, True)
    launch("a", 5, (x,), 8, True)
    launch("b", 5, (x,), 9, False)
    assert kernel.jit == [((3,), x, 7, True), ((5,), x, 9, False)]
    assert kernel.direct == [(5, 1, 1, 7, "function", "metadata", None, None, None, x.data_ptr(), 8, True)]
    launch("a", 0, (x,), 8, True)
    assert len(kernel.jit) + len(kernel.direct) == 3


def test_tensors_that_start_anywhere_go_through_triton(kernel: Kernel) -> None:
    """What is kept was compiled for aligned ones, and reads sixteen bytes at once."""
    x = torch.zeros(64)
    launch = Launcher(kernel)
    launch("a", 3, (x[1:],))
    launch("a", 3, (x,))
    launch("a", 3, (x[1:],))
    assert len(kernel.jit) == 3
    launch("a", 3, (x[4:],))
    assert len(kernel.direct) == 1


def test_numbers_that_triton_tells_apart_have_other_keys() -> None:
    assert len({number_key(value) for value in (1, 2, 16, 1 << 31, (1 << 31) + 1)}) == 5
    assert number_key(32) == number_key(48)
    assert number_key(3) == number_key(5)


def in_a_process_of_its_own(module: str, *arguments: str) -> str:
    """What a script beside this file prints without Triton's interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", f"tests.functional.kernels.{module}", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_short_way_starts_what_triton_does() -> None:
    """With Triton's own launching code, compiled for a GPU, on a driver that only notes it."""
    printed = json.loads(in_a_process_of_its_own("launch_without_gpu").splitlines()[-1])
    kernels = ["expand_kernel", "fold_kernel", "drop_kernel"]
    assert printed["found"] == [{"kernels": kernels, "same": True}] * 4
    # The two shapes in float32 share a form of the last kernel.
    assert printed["kept"] == 11


def test_they_compile_for_every_card() -> None:
    """Down to machine code, from Turing to Blackwell."""
    capabilities = ["75", "80", "86", "89", "90", "100", "120"]
    printed = in_a_process_of_its_own("compile_kernels", *capabilities)
    found = [json.loads(line) for line in printed.splitlines()]
    assert {str(line["capability"]) for line in found} == set(capabilities)
    assert len(found) == 18 * len(capabilities)
    # The least shared memory that a block of any of them can have is 48 KiB.
    assert all(line["bytes"] > 0 and line["shared"] <= 48 * 1024 for line in found)
