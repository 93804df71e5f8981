"""Adapter folders: damage to their options and weights, and every way of reading them."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.hostile.kinds import Case, Kind
from tests.hostile.mutations.adapters import CONFIG, WEIGHTS, damage_config, damage_weights
from tests.hostile.mutations.tensors import read_tensors
from tests.hostile.outcomes import Changed, Wrong
from tests.hostile.readers.equations import changes, check_close, picture, state_of

IDS = torch.arange(10).view(2, 5)
LANGUAGE = "language"
"""The variant whose base is a language model in a folder, `base` beside the adapter's files."""


class Network(nn.Module):
    """An embedding with a head that is tied to it, a norm and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 6)
        self.first = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.middle = nn.Linear(6, 6)
        self.out = nn.Linear(6, 3)
        self.head = nn.Linear(6, 10, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.norm(torch.tanh(self.first(self.embed(ids))))
        x = torch.tanh(self.middle(x))
        return torch.cat([self.out(x), self.head(x)], dim=-1)


def network() -> nn.Module:
    """The same base every time."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return Network().eval()


def llama() -> Any:
    """The same language model every time."""
    from tests.support.models import tiny_llama

    with torch.random.fork_rng():
        torch.manual_seed(5)
        return tiny_llama(initializer_range=0.2)


_FORMS: dict[str, dict[str, Any]] = {
    "full": {"rank": 2, "alpha": 3, "dropout": 0.1, "target_modules": ["first", "middle"], "modules_to_save": ["out"]},
    "cross": {
        "rank": 3,
        "order": 3,
        "terms": "cross",
        "coefficient_scale": "auto",
        "use_rslora": True,
        "bias": "adapted",
        "target_modules": ["first", "out"],
        "rank_pattern": {"out": 2},
        "alpha_pattern": {"fir.*": 1.5},
    },
    "lora": {"rank": 2, "order": 1, "target_modules": ["middle"], "modules_to_save": ["norm"]},
    "tokens": {"rank": 2, "target_modules": ["first"], "trainable_tokens": [1, 7]},
    LANGUAGE: {"rank": 2, "target_modules": ["q_proj", "down_proj"]},
}


def base_of(case: Case) -> Any:
    return llama() if case.variant == LANGUAGE else network()


def run(model: Any) -> Tensor:
    with torch.no_grad():
        return model(IDS).float() if not hasattr(model, "config") else model(input_ids=IDS + 3).logits.float()


def prepare(folder: Path) -> None:
    from pera_lightning import PeraConfig, adapter_state_dict, inject_adapter, save_adapter
    from tests.support.models import randomise_adapter
    from tests.support.pretrained import save_pretrained

    for seed, (name, options) in enumerate(_FORMS.items()):
        torch.manual_seed(seed)
        model = llama() if name == LANGUAGE else network()
        inject_adapter(model, PeraConfig(**options))
        randomise_adapter(model)
        for key, value in adapter_state_dict(model).items():
            if ".pera_" not in key:
                value.add_(torch.randn_like(value))
        save_adapter(model, folder / name, base_model="base" if name == LANGUAGE else None)
    save_pretrained(folder / LANGUAGE / "base", llama())


@contextlib.contextmanager
def unchanged_if_refused(model: nn.Module) -> Iterator[None]:
    before = picture(model)
    try:
        yield
    except BaseException as error:
        if picture(model) != before:
            raise Changed(f"{type(error).__name__}: {error}") from None
        raise


def check_model(case: Case, model: Any, rounding: float = 2e-3) -> None:
    """The outputs are those of the files, by the equations."""
    base = base_of(case)
    try:
        plain = base.double()
        plain.load_state_dict(state_of(base, case.given))
        expected = run(plain)
    except Wrong:
        raise
    except Exception as error:
        raise Wrong(f"accepted, though there is no such model: {type(error).__name__}: {error}") from error
    check_close(run(model), expected, rounding=rounding)


def load(case: Case) -> None:
    from pera_lightning import load_adapter

    model = base_of(case)
    with unchanged_if_refused(model):
        load_adapter(model, case.given)
    check_model(case, model)


def load_again(case: Case) -> None:
    """Into a model that holds the good adapter."""
    from pera_lightning import load_adapter

    model = base_of(case)
    load_adapter(model, case.good)
    with unchanged_if_refused(model):
        load_adapter(model, case.given)
    check_model(case, model)


def load_half(case: Case) -> None:
    """Into a base in half precision, where large values are none."""
    from pera_lightning import load_adapter

    model = base_of(case).to(case.random.choice([torch.float16, torch.bfloat16]))
    with unchanged_if_refused(model):
        load_adapter(model, case.given, allow_other_base=True)
    if not run(model).isfinite().all():
        raise Wrong("outputs in half precision are not finite")


def load_into_set(case: Case) -> None:
    from pera_lightning import AdapterSet

    model = base_of(case)
    adapters = AdapterSet(model)
    adapters.load("good", case.good)
    adapters.switch("good")
    call = case.random.choice(["load", "replace"])
    with unchanged_if_refused(model):
        getattr(adapters, call)({"load": "given", "replace": "good"}[call], case.given)
    if call == "load":
        adapters.switch("given")
    check_model(case, model)
    if call == "load":
        adapters.mix("both", {"good": 0.5, "given": 0.25})
        adapters.switch("both")
        if not run(model).isfinite().all():
            raise Wrong("outputs of a mixture are not finite")


def merge(case: Case) -> None:
    from pera_lightning import load_adapter, merge_adapter

    model = base_of(case)
    load_adapter(model, case.given)
    check_model(case, merge_adapter(model))


def export(case: Case) -> None:
    """As a LoRA of PEFT, whose files are read here by themselves."""
    from pera_lightning import export_lora
    from pera_lightning.errors import PeraError

    out = case.out / "lora"
    try:
        export_lora(case.given, out)
    except PeraError:
        if out.exists():
            raise Changed(f"{list(out.iterdir())} were written") from None
        raise
    expected, _, _ = changes(case.given)
    config, tensors = json.loads((out / CONFIG).read_text()), read_tensors(out / WEIGHTS)
    for name, change in expected.items():
        up, down = (tensors[_found(tensors, f"{name}.{part}")].double() for part in _parts(tensors, name))
        scaling = config["lora_alpha"] / config["r"]
        product = scaling * (down.T @ up.T if "lora_embedding_B" in str(_parts(tensors, name)) else up @ down)
        check_close(product, change if product.shape == change.shape else change.T, f"the exported {name}")


def _parts(tensors: dict[str, Tensor], name: str) -> tuple[str, str]:
    embedding = any(key.endswith(f"{name}.lora_embedding_B") for key in tensors)
    return ("lora_embedding_B", "lora_embedding_A") if embedding else ("lora_B.weight", "lora_A.weight")


def _found(tensors: dict[str, Tensor], ending: str) -> str:
    return next(key for key in tensors if key == f"base_model.model.{ending}")


def inspect(case: Case) -> None:
    from pera_lightning.analysis import inspect_adapter

    found = inspect_adapter(case.given)
    expected, _, _ = changes(case.given)
    for row in found.layers:
        change = expected[row.layer]
        check_close(torch.tensor(row.norm), change.norm(), f"the norm of {row.layer}")


def diff(case: Case) -> None:
    from pera_lightning.cli.diff import diff as compare

    with contextlib.redirect_stdout(None):
        compare(str(case.given), str(case.good))


def export_whole(case: Case) -> None:
    """The base with the adapter merged in, from files."""
    from pera_lightning import export_merged
    from pera_lightning.errors import PeraError

    out = case.out / "merged"
    try:
        export_merged(case.given, out, compare=False, base=str(case.good / "base"))
    except PeraError:
        if out.exists():
            raise Changed(f"{list(out.iterdir())} were written") from None
        raise
    state = state_of(llama(), case.given)
    for name, value in read_tensors(out / "model.safetensors").items():
        check_close(value, state[name], name)


def answer(case: Case) -> None:
    from pera_lightning.evaluation.answerer import Answerer

    options = {"gguf_file": None, "system_prompt": None, "use_chat_template": True, "without_adapter": False}
    base = str(case.good / "base")
    answerer = Answerer(str(case.given), base=base, max_new_tokens=4, merged=False, dtype="float32", **options)
    check_model(case, answerer.model)
    answerer.answer([{"role": "user", "content": "hello"}])


def _of_language(read: Callable[[Case], None], other: Callable[[Case], None]) -> Callable[[Case], None]:
    return lambda case: (read if case.variant == LANGUAGE else other)(case)


def warm() -> None:
    import pera_lightning.analysis
    import pera_lightning.evaluation.answerer
    import pera_lightning.export.merged.merged_model  # noqa: F401

    copy.deepcopy(run(llama()) + 0)
    run(network())


READS = {
    "load_adapter": load,
    "load_adapter over another": load_again,
    "load_adapter in half precision": load_half,
    "AdapterSet": load_into_set,
    "merge_adapter": merge,
    "export_lora": export,
    "inspect": inspect,
    "diff": diff,
    "export_merged": _of_language(export_whole, export),
    "generate": _of_language(answer, load),
}
# PEFT has nothing for trained biases and rows of tokens.
REFUSED = frozenset((form, read) for form in ("cross", "tokens") for read in ("export_lora", "export_merged"))
ADAPTER_CONFIG = Kind("adapter config", prepare, damage_config, READS, 5, warm, refused=REFUSED)
ADAPTER_WEIGHTS = Kind("adapter weights", prepare, damage_weights, READS, 5, warm, refused=REFUSED)
