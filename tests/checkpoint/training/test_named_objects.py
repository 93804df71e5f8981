"""Which of the names in a checkpoint are classes that it may need; nothing is imported to find out."""

from __future__ import annotations

import sys

import pytest

from pera_lightning.checkpoint.training.named_objects import reason_of_torch, unneeded


class Outer:
    class Inner:
        pass


def function() -> None:
    pass


CLASSES = [
    *("pathlib.PosixPath", "pathlib._local.PosixPath", "datetime.timedelta", "collections.defaultdict"),
    *("argparse.Namespace", "__builtin__.object", "numpy.core.multiarray.scalar", "numpy.dtype"),
    *("torch.nn.modules.linear.Linear", f"{__name__}.Outer", f"{__name__}.Outer.Inner"),
]
OTHERS = [
    *("os.system", "posix.system", "nt.system", "subprocess.Popen", "builtins.eval", "__builtin__.eval", "eval"),
    *("builtins.getattr", "builtins.__import__", "importlib.import_module", "runpy.run_path", "shutil.rmtree"),
    *("sys.exit", "pickle.loads", "torch.load", "torch.hub.load", "pathlib.Path.touch", "code.interact", "os", "torch"),
    *("commands.getoutput", "tempfile.TemporaryDirectory", f"{__name__}.function", "antigravity.x", "none.None", ""),
]


@pytest.mark.parametrize("name", CLASSES)
def test_classes(name: str) -> None:
    assert not unneeded([name])


@pytest.mark.parametrize("name", OTHERS)
def test_all_else(name: str) -> None:
    assert unneeded([name, "pathlib.PosixPath"]) == [name]
    assert "antigravity" not in sys.modules


def test_no_advice_of_torch_is_handed_on() -> None:
    told = "Re-running `torch.load` with `weights_only` set to `False` will likely succeed. WeightsUnpickler error: "
    assert reason_of_torch(ValueError(told + "\n\nUnsupported operand 0\n\nCheck")) == "Unsupported operand 0"
    assert reason_of_torch(ValueError(told + "Unsupported global: GLOBAL a.b was not allowed by default. Please")) == (
        "Unsupported global: GLOBAL a.b was not allowed by default"
    )
    assert reason_of_torch(ValueError("set `weights_only=False`")) == "not what torch.load(weights_only=True) reads"
    assert reason_of_torch(EOFError()) == "EOFError"
    assert reason_of_torch(ValueError("a\nb")) == "a b"
