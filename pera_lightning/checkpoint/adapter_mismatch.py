"""In what two adapters differ, in words for messages."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from torch import Tensor

from pera_lightning.checkpoint.manifest.base_record import record_difference, record_like
from pera_lightning.checkpoint.manifest.base_sample import sample_difference, spread
from pera_lightning.checkpoint.manifest.manifest import FLOATING, Manifest
from pera_lightning.injection import TokenPlan

Shapes = Mapping[str, tuple[int, ...]]
# The axis that is the rank's; the other is a size of the layer.
_RANK_AXES = {"pera_A": 0, "pera_B": 1}
PLAIN_MODEL_CURE = (
    "load weights of the plain model into the module before it has an adapter (its class's load_from_checkpoint(path), "
    "or module.load_state_dict(torch.load(path, weights_only=True)['state_dict'])), and give the Trainer no ckpt_path; "
    "to go on with an adapter, give a checkpoint of a run with PeraCallback"
)


def describe_mismatch(given: Shapes, wanted: Shapes) -> str | None:
    """What differs between two sets of tensor names and shapes, in words; None if nothing does."""
    lines = []
    missing, extra = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    differing = _differing(given, wanted)
    there, here = _layers(given), _layers(wanted)
    if there and here and not there & here:
        # All else follows from that.
        return (
            "no layer is adapted in both, as with another model or other targets: "
            f"{len(there)} there, e.g. {min(there)!r}; {len(here)} here, e.g. {min(here)!r}"
        )
    if there:
        lines += [
            f"layers adapted {where} only: {_few(names)}"
            for where, names in (("there", there - here), ("here", here - there))
            if names
        ]
    if missing:
        lines.append(f"{len(missing)} tensors are missing, e.g. {missing[0]!r}")
    if extra:
        lines.append(f"{len(extra)} tensors have no place in this model, e.g. {extra[0]!r}")
    if differing:
        key = differing[0]
        lines.append(f"{len(differing)} tensors differ in shape, e.g. {key!r}: {given[key]}, here {wanted[key]}")
        lines.extend(_describe_rank(key, given[key], wanted[key]))
    return "; ".join(lines) or None


def mismatch_cure(given: Shapes, wanted: Shapes) -> str:
    """What to do where a checkpoint has other tensors than a run's adapter."""
    if is_of_plain_model(given, wanted):
        return PLAIN_MODEL_CURE
    if any(_differs_in_size(key, given[key], wanted[key]) for key in _differing(given, wanted)):
        return "load the model of the run that wrote it: the layers of this one have other sizes"
    options = "use the options of the run that wrote it (adapter_config.json beside the adapter lists them)"
    return options if _layers(given) & _layers(wanted) else f"{options}, or its model: no layer is adapted in both"


def is_of_plain_model(given: Collection[str], wanted: Collection[str] = ()) -> bool:
    """Whether no layer is adapted, and there are weights that are not the adapter's.

    Args:
        given: Names of the tensors.
        wanted: Those of the adapter that is asked for: a module trained whole has its names in the plain model too.
    """
    return not _layers(given) and not set(given) <= set(wanted)


def _differing(given: Shapes, wanted: Shapes) -> list[str]:
    return [key for key in sorted(wanted.keys() & given.keys()) if wanted[key] != given[key]]


def _layers(tensors: Collection[str]) -> set[str]:
    names = (key.rpartition(".") for key in tensors)
    return {layer for layer, _, name in names if name.startswith("pera_")}


def _differs_in_size(key: str, given: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    axis = _RANK_AXES.get(key.rpartition(".")[2])
    return axis is not None and len(given) == 2 and given[1 - axis] != wanted[1 - axis]


def _describe_rank(key: str, given: tuple[int, ...], wanted: tuple[int, ...]) -> list[str]:
    axis = _RANK_AXES.get(key.rpartition(".")[2])
    if axis is None or len(given) != 2 or given[axis] == wanted[axis]:
        return []
    return [f"the rank is {given[axis]} there and {wanted[axis]} here"]


def shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of tensors."""
    return {key: tuple(value.shape) for key, value in tensors.items()}


def form_difference(stored: Manifest, present: Manifest) -> str | None:
    """In what two adapters differ beside their values, in words; None if in nothing that changes the outputs.

    Dropout may differ: it acts in training only and is a user's to change between runs.
    """
    lines = [
        f"{name} is {getattr(stored.config, name)!r} there and {getattr(present.config, name)!r} here"
        for name in ("order", "terms", "coefficient_scale", "use_rslora", "base_steps")
        if getattr(stored.config, name) != getattr(present.config, name)
    ]
    for kind, here, there in (
        ("layer", set(present.layers), set(stored.layers)),
        ("module saved whole", set(present.saved), set(stored.saved)),
    ):
        lines.extend(f"{kind} {name!r} is adapted here only" for name in sorted(here - there)[:1])
        lines.extend(f"{kind} {name!r} is adapted there only" for name in sorted(there - here)[:1])
    lines.extend(_token_difference(stored, present))
    for name in sorted(set(stored.layers) & set(present.layers)):
        ours, theirs = present.layers[name], stored.layers[name]
        if ours.rank != theirs.rank:
            lines.append(f"the rank of {name!r} is {theirs.rank} there and {ours.rank} here")
        elif stored.config.scaling(theirs.rank, theirs.alpha) != present.config.scaling(ours.rank, ours.alpha):
            lines.append(f"the alpha of {name!r} is {theirs.alpha} there and {ours.alpha} here")
        else:
            continue
        break
    return "; ".join(lines) or None


def _token_difference(stored: Manifest, present: Manifest) -> list[str]:
    for name in sorted(stored.tokens.keys() | present.tokens.keys()):
        theirs, ours = (manifest.tokens.get(name, TokenPlan(())) for manifest in (stored, present))
        there, here = set(theirs.ids), set(ours.ids)
        if there != here:
            return [
                f"rows of {name!r} that are trained there only: {_few(there - here)}; here only: {_few(here - there)}"
            ]
        if set(theirs.tied) != set(ours.tied):
            tied = (", ".join(plan.tied) or "nothing" for plan in (theirs, ours))
            return [f"the weight of {name!r} is tied to {' there and to '.join(tied)} here"]
    return []


def _few(ids: Collection[int] | Collection[str]) -> str:
    shown = ", ".join(map(repr, sorted(ids)[:5]))
    return f"{shown}, ... ({len(ids)})" if len(ids) > 5 else shown or "none"


def quantization_difference(stored: Manifest, present: Manifest) -> str | None:
    """In words, if two adapters sit on bases that are quantised differently; None if not."""
    if stored.quantization == present.quantization:
        return None
    there, here = (
        " and ".join(kinds).replace(FLOATING, "not quantised") for kinds in (stored.quantization, present.quantization)
    )
    return f"trained on a base that is {there}; this one is {here}"


def file_difference(stored: Manifest, weights: Mapping[str, Callable[[], Tensor]], *, floating: bool) -> str | None:
    """In words, if an adapter's base is another one than the weights in files; None if it may be the same.

    Args:
        stored: Of the adapter.
        weights: Layer name -> reads its weight (out, in).
        floating: Whether the files store floating weights; others are unpacked when they are read.
    """
    if stored.base_record:
        texts = {name: text for name, text in stored.base_record.items() if name in weights}
        present = {name: record_like(text, weights[name](), gguf=not floating) for name, text in texts.items()}
        return record_difference(stored.base_record, present)
    sample = {name: spread(weights[name]()) for name in stored.base_sample if name in weights}
    same_storage = floating and stored.quantization == (FLOATING,)
    return sample_difference(stored.base_sample, sample, same_storage=same_storage)


def base_difference(stored: Manifest, present: Manifest) -> str | None:
    """In words, if the weights below two adapters are others; None if they may be the same."""
    if stored.base_record and present.base_record:
        return record_difference(stored.base_record, present.base_record)
    # Quantised twice from other dtypes, single weights may fall on the neighbouring code.
    same_storage = stored.quantization == present.quantization == (FLOATING,)
    return sample_difference(stored.base_sample, present.base_sample, same_storage=same_storage)
