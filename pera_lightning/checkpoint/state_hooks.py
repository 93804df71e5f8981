"""Adapter-only state dicts of a whole module: hooks on its root that every saving and loading path runs through.

A callback's `on_save_checkpoint` is skipped by `save_weights_only=True`, so a filter there would write the whole
base. `state_dict()` of the root is what all paths call.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pera_lightning.checkpoint.adapter_mismatch import describe_mismatch, is_of_plain_model, mismatch_cure, shapes
from pera_lightning.checkpoint.adapter_state import adapter_state_dict, refuse_merged
from pera_lightning.checkpoint.adapter_tensors import dtype_difference
from pera_lightning.checkpoint.computable import constant_infinities, forms_in, value_problem
from pera_lightning.checkpoint.finite_values import describe_infinite, not_finite
from pera_lightning.errors import CheckpointError
from pera_lightning.injection import clean_name

_INSTALLED = "_pera_state_hooks"
# The hook after loading is not told the prefix, so the one before leaves it here.
_LOADS_AS_ROOT = "_pera_loads_as_root"


def install_state_hooks(root: nn.Module) -> None:
    """Make `root.state_dict()` hold the adapter alone, and `root.load_state_dict` accept that strictly.

    Without adapters in `root` (before injection, after removal), and where `root` is a part of another module,
    the hooks do nothing. Installing twice is the same as once; it brings back what somebody took away.
    """
    for handle in getattr(root, _INSTALLED, ()):
        handle.remove()
    handles = (
        root.register_state_dict_post_hook(_keep_adapter),
        root.register_load_state_dict_pre_hook(_check_adapter),
        root.register_load_state_dict_post_hook(_forgive_base),
    )
    setattr(root, _INSTALLED, handles)


def _keep_adapter(root: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: Any) -> None:
    wanted = adapter_state_dict(root)
    # As a part of another module it is saved whole: that module's loading knows nothing of adapters.
    if not wanted or prefix:
        return
    for key in list(state_dict):
        value = state_dict.pop(key)
        if clean_name(key) in wanted:
            state_dict[clean_name(key)] = value


def _check_adapter(
    root: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: Any,
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    wanted = adapter_state_dict(root)
    setattr(root, _LOADS_AS_ROOT, not prefix)
    if not wanted or prefix:
        return
    _restore_wrapper_names(root, state_dict)
    refuse_merged(root, CheckpointError)
    if not strict:
        return
    present = _own_names(root)
    given = {
        clean_name(name): value
        for name, value in state_dict.items()
        if isinstance(value, Tensor) and (clean_name(name) in wanted or name not in present)
    }
    found, needed = shapes(given), shapes(wanted)
    mismatch = describe_mismatch(found, needed)
    if not mismatch:
        _check_values(root, given, wanted)
        return
    if is_of_plain_model(found, needed):
        mismatch = f"no tensor of this adapter: the file looks like a checkpoint of the plain model ({mismatch})"
    raise CheckpointError(
        "The checkpoint does not fit the adapters of this run.",
        got=mismatch,
        expected="an adapter-only checkpoint of the same model, rank, order and targets",
        fix=mismatch_cure(found, needed),
    )


def _check_values(root: nn.Module, given: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    constants = constant_infinities(given, root, wanted)
    infinite = not_finite({key: value for key, value in given.items() if key not in constants})
    problem = (
        f"values that are not finite: {describe_infinite(infinite)}"
        if infinite
        else dtype_difference(given, wanted) or value_problem(given, forms_in(root), wanted, constants)
    )
    if problem:
        raise CheckpointError(
            "The checkpoint holds an adapter that the model cannot compute with.",
            got=problem,
            expected="finite values, in float32, float16, bfloat16 or the model's own dtypes",
            fix="go on from an earlier checkpoint; that training diverged, or the file is damaged",
        )


def _forgive_base(root: nn.Module, incompatible: Any) -> None:
    """Base tensors are not in an adapter-only checkpoint; only a missing tensor of the adapter is an error."""
    wanted = adapter_state_dict(root)
    if wanted and getattr(root, _LOADS_AS_ROOT):
        incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if clean_name(key) in wanted]


def _restore_wrapper_names(root: nn.Module, state_dict: dict[str, Any]) -> None:
    """Give checkpoint keys the wrapper components that the names have in this run (torch.compile)."""
    for name in _own_names(root):
        clean = clean_name(name)
        if clean != name and clean in state_dict:
            state_dict[name] = state_dict.pop(clean)


def _own_names(root: nn.Module) -> set[str]:
    parameters = root.named_parameters(remove_duplicate=False)
    return {name for name, _ in (*parameters, *root.named_buffers(remove_duplicate=False))}
