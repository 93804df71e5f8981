"""How strongly the entries of a hidden state act together on a model's output (paper Eq. 12)."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pera_lightning.did_you_mean import did_you_mean, near
from pera_lightning.errors import ConfigError, one_line
from pera_lightning.export.probe import first_tensor
from pera_lightning.injection import adapted_layers, adapter_disabled
from pera_lightning.models.evaluation_mode import evaluation_mode

ENTRIES = 32
"""Of a hidden state, from the first: as many as the paper's Fig. 5 shows."""


@dataclass(frozen=True)
class HiddenState:
    """A hidden state h of one text, and the output f(h) whose derivatives are taken.

    Args:
        inputs: What the model is called with, by name: one text.
        token: Place of the token whose state it is.
        output: Which of the outputs f is: of the vocabulary, or of the classes.
    """

    inputs: Mapping[str, Any]
    token: int
    output: int


def first_adapted_block(model: nn.Module) -> str:
    """Name of the first block with an adapted layer: all adapters act on the state that enters it.

    Raises:
        ConfigError: The model has no list of blocks with one.
    """
    adapted = {layer for _, layer in adapted_layers(model)}
    for name, module in model.named_modules():
        for index, block in enumerate(module if isinstance(module, nn.ModuleList) else ()):
            if not adapted.isdisjoint(block.modules()):
                return f"{name}.{index}"
    raise ConfigError(
        "There is no block whose hidden state could be taken.",
        got=f"{type(model).__name__} without adapted layers in a list of blocks",
        expected="the name of a layer that is called with hidden states",
        fix="name it (--layer)",
    )


def hidden_states(model: nn.Module, inputs: Sequence[Mapping[str, Any]], layer: str) -> list[HiddenState]:
    """One hidden state of each text, to be given to `hidden_interactions` of this model and others of its kind.

    Of a language model it is that of the last token, and f the logit of the token that the model finds likeliest next;
    of a classifier f is the largest logit (its only one: the score), and the state that of the token with the largest
    gradient of f.

    Args:
        model: A language model or classifier of transformers.
        inputs: Its calls, with one text each.
        layer: Name of a module that is called with hidden states.

    Raises:
        ConfigError: There is no such layer, or it is not called with hidden states of one text.
    """
    found = []
    with _differentiated(model):
        for call in inputs:
            outputs, state = _outputs(model, call, layer)
            output = int(_last(outputs).argmax())
            token = state.shape[1] - 1
            if outputs.dim() == 2:
                [gradient] = torch.autograd.grad(outputs[0, output], state, materialize_grads=True)
                token = int(gradient[0].norm(dim=-1).argmax())
            found.append(HiddenState(call, token, output))
    return found


def hidden_interactions(model: nn.Module, states: Sequence[HiddenState], layer: str, entries: int = ENTRIES) -> Tensor:
    """The paper's interaction strength (Eq. 12), for the first entries of a hidden state.

        S_ij = mean over hidden states h of | d^2 f(h) / dh_i dh_j |

    f is the model's output as a function of the state h of one token that enters `layer`, all that comes before being
    fixed. The paper does not say which output and which state: see `hidden_states` for ours. The derivatives are exact
    up to rounding, in the dtype of the model: the gradient is derived once more, one entry at a time, so that no matrix
    of the state's whole width is built.

    Every linear layer, adapted or not, is linear in its input. What S measures are the activations, norms and attention
    around such layers: a base model has interactions without any adapter, a change of its weights changes them, and in
    a network of linear layers and ReLU they are zero.

    Args:
        model: As it is to be measured: with its adapter, or within `adapter_disabled` or `products_left_out`. It is
            called in eval mode, with attention that can be derived twice.
        states: As `hidden_states` finds them, for all models that are to be compared.
        layer: Name of the module that h enters.
        entries: Of h, from the first; all of a shorter one.

    Returns:
        Shape (entries, entries), symmetric up to rounding, on the CPU.

    Raises:
        ConfigError: The model has an operation without a second derivative, or see `hidden_states`.
    """
    total = None
    with _differentiated(model):
        for state in states:
            second = _second_derivatives(model, state, layer, entries).abs()
            total = second if total is None else total + second
    if total is None:
        raise ConfigError(
            "Interactions are a mean over hidden states.", got="none", expected="one or more", fix="give more texts"
        )
    return (total / len(states)).cpu()


@contextmanager
def products_left_out(model: nn.Module) -> Iterator[None]:
    """Within it the adapters' coefficients h are zero, which leaves a LoRA; they are as before afterwards."""
    coefficients = [layer.pera_h.data for _, layer in adapted_layers(model) if layer.pera_h is not None]
    kept = [values.clone() for values in coefficients]
    try:
        for values in coefficients:
            values.zero_()
        yield
    finally:
        for values, before in zip(coefficients, kept, strict=True):
            values.copy_(before)


def measure_all(
    model: nn.Module, inputs: Sequence[Mapping[str, Any]], layer: str, entries: int = ENTRIES
) -> tuple[list[HiddenState], dict[str, Tensor]]:
    """Interactions of the base model, of its adapter with the coefficients at zero (a LoRA) and of the adapter.

    Args:
        model: With an adapter.
        inputs: See `hidden_states`; the states and outputs are those of the adapted model.
        layer: See `hidden_interactions`.
        entries: See `hidden_interactions`.

    Returns:
        The states, and what was measured -> S.
    """
    states = hidden_states(model, inputs, layer)
    with adapter_disabled(model):
        found = {"base": hidden_interactions(model, states, layer, entries)}
    if _has_products(model):
        with products_left_out(model):
            found["LoRA (h = 0)"] = hidden_interactions(model, states, layer, entries)
    return states, found | measure_other(model, states, layer, entries)


def measure_other(
    model: nn.Module, states: Sequence[HiddenState], layer: str, entries: int = ENTRIES
) -> dict[str, Tensor]:
    """Interactions of an adapted model, under the name of its form, at hidden states found with another one."""
    return {"PERA" if _has_products(model) else "LoRA": hidden_interactions(model, states, layer, entries)}


def _has_products(model: nn.Module) -> bool:
    return any(layer.pera_h is not None for _, layer in adapted_layers(model))


def _second_derivatives(model: nn.Module, at: HiddenState, layer: str, entries: int) -> Tensor:
    outputs, state = _outputs(model, at.inputs, layer)
    [first] = torch.autograd.grad(_last(outputs)[at.output], state, create_graph=True, materialize_grads=True)
    gradient = first[0, at.token, :entries]
    if not gradient.requires_grad:
        return gradient.new_zeros(len(gradient), len(gradient))
    return torch.stack([_derived(entry, state)[0, at.token, :entries] for entry in gradient])


def _derived(value: Tensor, state: Tensor) -> Tensor:
    """The gradient of a value by the state."""
    # Through the whole graph: torch.autograd.grad would pass by a function that can be derived only once, in silence.
    value.backward(retain_graph=True)
    gradient, state.grad = state.grad, None
    return torch.zeros_like(state) if gradient is None else gradient


def _outputs(model: nn.Module, inputs: Mapping[str, Any], layer: str) -> tuple[Tensor, Tensor]:
    """The outputs for one text, and the state that enters the layer, which they derive from."""
    found: list[Tensor] = []

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Blocks that share their weights are one module, called again and again: h enters it once.
        if found:
            return None
        name = next(iter(inspect.signature(module.forward).parameters))
        state = _checked_state(args[0] if args else kwargs.get(name), layer)
        found.append(state.detach().requires_grad_())
        return ((found[0], *args[1:]), kwargs) if args else (args, kwargs | {name: found[0]})

    with _module(model, layer).register_forward_pre_hook(enter, with_kwargs=True):
        outputs = first_tensor(model(**inputs))
    if not found:
        _checked_state(None, layer)
    return outputs, found[0]


def _last(outputs: Tensor) -> Tensor:
    """The logits of a classifier, and of a language model's last token."""
    return outputs[0, -1] if outputs.dim() == 3 else outputs[0]


@contextmanager
def _differentiated(model: nn.Module) -> Iterator[None]:
    """Within it a model computes what can be derived twice, by its hidden states alone."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        # Only the plain form of attention has second derivatives.
        with evaluation_mode(model), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            yield
    except (RuntimeError, NotImplementedError) as error:
        if "deriv" not in str(error) and "differentia" not in str(error):
            raise
        raise ConfigError(
            "The model has an operation without a second derivative.",
            got=one_line(error),
            expected="attention in torch's own operations (sdpa or eager), and layers that can be derived twice",
            fix='load the model with attn_implementation="eager"',
        ) from error
    finally:
        for parameter in trained:
            parameter.requires_grad_()


def _module(model: nn.Module, layer: str) -> nn.Module:
    modules = dict(model.named_modules())
    if layer not in modules or not layer:
        raise ConfigError(
            "There is no such layer.",
            got=repr(layer),
            expected="the name of a module that is called with hidden states, such as a block",
            fix=did_you_mean(near(layer, modules), "leave it out for the first block with an adapter"),
        )
    return modules[layer]


def _checked_state(state: Any, layer: str) -> Tensor:
    if isinstance(state, Tensor) and state.is_floating_point() and state.dim() == 3 and len(state) == 1:
        return state
    got = f"a tensor of shape {tuple(state.shape)}, {state.dtype}" if isinstance(state, Tensor) else "no tensor"
    raise ConfigError(
        "The layer is not called with the hidden states of a text.",
        got=f"{got}, as the first argument of {layer}",
        expected="floating numbers of shape (1, tokens, features)",
        fix="name another layer, such as a block, and call the model with one text at a time",
    )
