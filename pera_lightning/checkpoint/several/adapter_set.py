"""`AdapterSet`: several adapters on one base, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from pera_lightning.checkpoint.adapter_files import load_adapter
from pera_lightning.checkpoint.several.adapter_comparison import AdapterComparison, compare_layers
from pera_lightning.checkpoint.several.adapter_names import check_known, check_new
from pera_lightning.checkpoint.several.classes_by_adapter import ClassesByAdapter
from pera_lightning.checkpoint.several.mixing import inject_mixture
from pera_lightning.concurrency import changing, guard_calls, kept, reading
from pera_lightning.errors import ConfigError, InjectionError
from pera_lightning.injection import InjectionReport, adapted_layers, is_adapted
from pera_lightning.injection.detached import DetachedAdapter, attach_adapter, detach_adapter, refuse_unsettled
from pera_lightning.layers import scaled_factors

_CHANGED = "make a new AdapterSet; use switch(None) in place of remove_adapter, and merge a copy of the model"
_PUT_IN = (
    "remove_adapter(model) takes them out again; to have them in the set, save_adapter(model, folder) before and "
    "load(name, folder) afterwards"
)


class AdapterSet:
    """Several adapters of one model, one of them or none in place.

    Every adapter keeps layers of its own over the same base, whose weights exist once. A switch puts those of one
    adapter where those of another were: it neither copies nor rebuilds anything. With an adapter in place the model is
    what it would be had that one alone been loaded: `save_adapter`, `merge_adapter`, `adapter_disabled`,
    `remove_adapter`, state dicts and training work on it, and a classifier's config has the names of its classes. With
    none it is the base, with the `requires_grad` flags it had before.

    Only `switch`, `using` and `remove` change what the model computes: `load` and `mix` leave in place what is there.
    Once `merge_adapter` or `remove_adapter` was called on the model, the set is of no use any more.

    Threads: a call of the model (`model(...)`, or a whole `generate`) sees one adapter from beginning to end. Changes,
    by the set or past it (`load_adapter`, `adapter_disabled`), wait for calls and readers (`save_adapter`) in other
    threads, and they for changes: two seconds, then a change raises InjectionError, and nothing has changed. Make the
    set of what is called: `AdapterSet(torch.compile(model))`. Calls of a part of the model or of `model.forward`, of
    graphs around it, and what torch does (`copy.deepcopy(model)`) are not counted: put them into a block of `using`.

    Args:
        model: The module that adapters are loaded into. If it holds one already, this becomes the first of the set.
        name: Name for the adapter that the model holds; only then.

    Raises:
        ConfigError: There is an adapter and no name for it, or a name and no adapter.
        InjectionError: The model's adapter is merged or disabled.
    """

    def __init__(self, model: nn.Module, *, name: str | None = None) -> None:
        self._model = model
        self._adapters: dict[str, DetachedAdapter] = {}
        self._active: str | None = None
        self._classes = ClassesByAdapter(model)
        adapted = is_adapted(model)
        if adapted != (name is not None):
            raise ConfigError(
                "The adapter that a model holds enters the set under a name.",
                got=f"{'an adapted model' if adapted else 'a model without adapters'} and name={name!r}",
                expected="a name exactly if the model holds an adapter",
                fix="AdapterSet(model, name='...')" if adapted else "AdapterSet(model)",
            )
        guard_calls(model)
        if name is not None:
            check_new(name, self._adapters)
            with changing(model):
                self._adapters[name] = detach_adapter(model)
                self._put(name)
            self._active = name

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        guard_calls(self._model)

    @property
    def model(self) -> nn.Module:
        """The model."""
        return self._model

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the adapters, in the order they came."""
        return tuple(self._adapters)

    @property
    def active(self) -> str | None:
        """Name of the adapter in place; None for the base alone."""
        return self._active

    def __repr__(self) -> str:
        return f"AdapterSet(names={self.names}, active={self.active!r})"

    def switch(self, name: str | None) -> None:
        """Put an adapter in place.

        Args:
            name: Which one; None for the base alone.

        Raises:
            ConfigError: The set holds no adapter of this name.
            InjectionError: The adapter in place is merged or disabled, or the model was changed past the set.
            TargetError: The model has lost a layer of the adapter.
        """
        with changing(self._model):
            if name is not None:
                check_known(name, self._adapters)
            self._check_settled()
            if name != self._active:
                with self._detached():
                    self._active = name

    @contextmanager
    def using(self, name: str | None) -> Iterator[nn.Module]:
        """Within this context the adapter is in place; afterwards the one from before, also after an exception.

        Other threads (and tasks of asyncio) cannot put another one in place meanwhile: for them this is a call that
        runs. Blocks with the same adapter run side by side; the last one to end brings back what was before.

        Args:
            name: Which one; None for the base alone.

        Yields:
            The model.

        Raises:
            ConfigError: The set holds no adapter of this name.
            InjectionError: As by `switch`. Where it is raised at the end, this adapter is still in place.
        """

        def switch() -> Callable[[], None]:
            before = self._active
            self.switch(name)
            return partial(self.switch, before)

        with kept(self._model, lambda: name == self._active, switch):
            yield self._model

    def load(
        self,
        name: str,
        directory: str | Path,
        *,
        allow_other_quantization: bool = False,
        allow_other_base: bool = False,
    ) -> InjectionReport:
        """Add an adapter from a folder, with the checks of `load_adapter`. All or nothing.

        It is not put in place. An adapter with `loftq_steps` > 1 is refused, since it has a base of its own.

        Args:
            name: A new name.
            directory: Folder written by `save_adapter`.
            allow_other_quantization: See `load_adapter`.
            allow_other_base: See `load_adapter`.

        Raises:
            AdapterFileError: A file is missing or damaged, or the adapter does not fit the model.
            ConfigError: The name is taken.
            InjectionError: The adapter in place is merged or disabled, or the model was changed past the set.
        """
        with changing(self._model):
            check_new(name, self._adapters)
            with self._detached():
                report = load_adapter(
                    self._model,
                    directory,
                    allow_other_quantization=allow_other_quantization,
                    allow_other_base=allow_other_base,
                )
                self._adapters[name] = detach_adapter(self._model)
                self._classes.keep(name)
        # The model held no adapter, so there is a report.
        return cast("InjectionReport", report)

    def replace(
        self,
        name: str,
        directory: str | Path,
        *,
        allow_other_quantization: bool = False,
        allow_other_base: bool = False,
    ) -> None:
        """Give an adapter other values, in place: the same memory holds them. All or nothing.

        Args:
            name: Which adapter.
            directory: Folder with an adapter of the same form (layers, ranks, order, scalings).
            allow_other_quantization: See `load_adapter`.
            allow_other_base: See `load_adapter`.

        Raises:
            AdapterFileError: A file is missing or damaged, or the adapter is of another form.
            ConfigError: The set holds no adapter of this name.
            InjectionError: The adapter in place is merged or disabled, or the model was changed past the set.
        """
        with changing(self._model), self.using(name):
            load_adapter(
                self._model,
                directory,
                allow_other_quantization=allow_other_quantization,
                allow_other_base=allow_other_base,
            )

    def mix(self, name: str, weights: Mapping[str, float]) -> InjectionReport:
        """Add the weighted sum of adapters: the base changed by `sum_i w_i dW_i`. All or nothing.

        It is an adapter like others (order 1, of rank `sum_i K_i` with the expanded ranks K), and independent of those
        it was made of. Biases and modules trained whole are mixed by the same rule, `v0 + sum_i w_i (v_i - v0)`: for
        those that compute linearly in their parameters (biases, linear layers, norms) it is as exact as for dW, for
        others it is what is known as task arithmetic.

        Args:
            name: A new name.
            weights: Name -> weight; any finite number but 0.

        Raises:
            ConfigError: The name is taken, a name is unknown, or a weight is no number to mix with.
            InjectionError: The adapters cannot be mixed, the one in place is merged or disabled, or the model was
                changed past the set.
        """
        with changing(self._model):
            check_new(name, self._adapters)
            for part in weights:
                check_known(part, self._adapters)
            with self._detached():
                report = inject_mixture(self._model, {part: (self._adapters[part], weights[part]) for part in weights})
                self._adapters[name] = detach_adapter(self._model)
                self._classes.keep_mixture(name, weights)
        return report

    def compare(self, first: str, second: str) -> AdapterComparison:
        """Norms and cosines of the weight changes of two adapters, layer by layer; `print` shows a table.

        Raises:
            ConfigError: The set holds no adapter of one of the names.
        """
        with reading(self._model):
            found = []
            for name in (first, second):
                check_known(name, self._adapters)
                layers = self._adapters[name].layers.items()
                found.append({layer: partial(scaled_factors, adapted) for layer, adapted in layers})
            return compare_layers((first, second), *found)

    def remove(self, name: str) -> None:
        """Forget an adapter; if it is in place, the base alone remains.

        Raises:
            ConfigError: The set holds no adapter of this name.
            InjectionError: It is in place and merged or disabled, or the model was changed past the set.
        """
        with changing(self._model):
            check_known(name, self._adapters)
            if name == self._active:
                self.switch(None)
            del self._adapters[name]

    @contextmanager
    def _detached(self) -> Iterator[None]:
        """Within this context the model is the base; afterwards it holds the adapter that `_active` names then."""
        self._check_settled()
        before = self._active
        # No inference tensors: an adapter that a service loads can still be trained or mixed.
        with torch.inference_mode(mode=False):
            if before is not None:
                self._adapters[before] = detach_adapter(self._model)
                self._classes.put(None)
            try:
                yield
                self._put(self._active)
            except BaseException:
                self._active = before
                self._put(before)
                raise

    def _put(self, name: str | None) -> None:
        if name is not None:
            attach_adapter(self._model, self._adapters[name])
        self._classes.put(name)

    def _check_settled(self) -> None:
        """Raise unless the model holds the active adapter, neither merged nor disabled."""
        expected = {} if self._active is None else self._adapters[self._active].layers
        present = {id(layer) for _, layer in adapted_layers(self._model)}
        if present != {id(layer) for layer in expected.values()}:
            raise InjectionError(
                "The model's adapters were changed past the set.",
                got=f"{len(present)} adapted layers that are not those of {self._active!r}",
                expected="what the last switch put in place",
                fix=_CHANGED if self._active else _PUT_IN,
            )
        refuse_unsettled(expected)
