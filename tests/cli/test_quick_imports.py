from __future__ import annotations

import gc
import sys

import pytest

from pera_lightning.cli.quick_imports import quick_imports


def test_the_collector_waits_for_the_first_import(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen: list[bool] = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(True))
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    with quick_imports():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert frozen == [True]


def test_nothing_is_frozen_where_torch_was_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", sys)
    monkeypatch.setattr(gc, "freeze", lambda: pytest.fail("frozen"))
    with quick_imports():
        assert gc.isenabled()
