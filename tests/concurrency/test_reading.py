"""Saving, copying out and exporting an adapter beside switches; and all of it at once, in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pera_lightning import AdapterSet, adapter_state_dict, export_lora, save_adapter
from pera_lightning.analysis import inspect_adapter
from pera_lightning.concurrency import changing, reading
from pera_lightning.errors import InjectionError
from tests.conftest import ROOT
from tests.support.paused_calls import LONG, in_thread
from tests.support.several_adapters import loaded, same_state

READERS: dict[str, Callable[[AdapterSet, Path], Any]] = {
    "save_adapter": lambda adapters, folder: save_adapter(adapters.model, folder),
    "adapter_state_dict": lambda adapters, _: adapter_state_dict(adapters.model),
    "export_lora": lambda adapters, folder: export_lora(adapters.model, folder),
    "inspect_adapter": lambda adapters, _: inspect_adapter(adapters.model),
    "compare": lambda adapters, _: adapters.compare("weather", "music"),
}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("kind", READERS)
def test_readers_wait_for_a_change(adapters: AdapterSet, tmp_path: Path, kind: str) -> None:
    adapters.switch("music")
    with changing(adapters.model), pytest.raises(InjectionError, match="rely on how it is"):
        in_thread(READERS[kind], adapters, tmp_path).result(LONG)
    in_thread(READERS[kind], adapters, tmp_path).result(LONG)


@pytest.mark.usefixtures("impatient")
def test_a_change_waits_for_readers_and_they_not_for_each_other(adapters: AdapterSet, tmp_path: Path) -> None:
    with reading(adapters.model):
        in_thread(save_adapter, adapters.model, tmp_path).result(LONG)
        with pytest.raises(InjectionError, match="rely on how it is"):
            in_thread(adapters.switch, "music").result(LONG)
    in_thread(adapters.switch, "music").result(LONG)
    assert adapters.active == "music"


def test_folders_that_were_saved_beside_switches(
    adapters: AdapterSet, folders: dict[str, Path], tmp_path: Path
) -> None:
    wanted = [loaded(folder) for folder in folders.values()]

    def save() -> None:
        for number in range(12):
            save_adapter(adapters.model, tmp_path / str(number))

    call = in_thread(save)
    while not call.done():
        for name in folders:
            adapters.switch(name)
    call.result(LONG)
    assert all(any(same_state(loaded(folder), model) for model in wanted) for folder in tmp_path.iterdir())


BESIDE = """
import sys, threading, time
import torch
from pera_lightning import AdapterSet, save_adapter
from tests.support.several_adapters import IDS, loaded, network, save_all
from pathlib import Path

root = Path(sys.argv[1])
folders = save_all(root / "saved")
answers = [loaded(folder)(IDS) for folder in folders.values()]
adapters = AdapterSet(network())
for name, folder in folders.items():
    adapters.load(name, folder)
adapters.switch("weather")
end, counts, wrong = time.monotonic() + 1, dict.fromkeys(("call", "train", "switch", "save"), 0), []

def is_right(output):
    return any(torch.allclose(output, answer, rtol=1e-10, atol=1e-12) for answer in answers)

def call():
    with torch.no_grad():
        if not is_right(adapters.model(IDS)):
            wrong.append("call")

def train():
    output = adapters.model(IDS)
    output.sum().backward()
    if not is_right(output):
        wrong.append("train")

def switch():
    for name in folders:
        adapters.switch(name)

def save():
    save_adapter(adapters.model, root / "again")
    if not is_right(loaded(root / "again")(IDS)):
        wrong.append("save")

def often(action):
    while time.monotonic() < end or not counts[action.__name__]:
        try:
            action()
        except BaseException as error:
            wrong.append(repr(error))
        counts[action.__name__] += 1

threads = [threading.Thread(target=often, args=(action,)) for action in (call, call, train, switch, save)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(counts, wrong[:3])
sys.exit(len(wrong) > 0)
"""


def test_all_of_it_at_once(tmp_path: Path) -> None:
    """The process itself goes on, and each answer and folder is of one adapter."""
    run = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", BESIDE, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr[-3000:]


def test_stacks_of_other_threads_are_not_read() -> None:
    """Their frames end while they are looked at, which ends the process."""
    for path in (ROOT / "pera_lightning").rglob("*.py"):
        assert not re.search(r"_current_frames|_current_exceptions", path.read_text(encoding="utf-8")), path
