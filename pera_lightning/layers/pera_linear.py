"""`PeraLinear`: a frozen linear layer with a PERA adapter."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from pera_lightning.base_layers import Base, adaptable_base, expect_base
from pera_lightning.concurrency import in_turn
from pera_lightning.config import PeraConfig
from pera_lightning.form_bounds import check_columns
from pera_lightning.functional import delta_weight, expanded_rank
from pera_lightning.functional.call import Options, chosen_path, options_of
from pera_lightning.functional.cost import FEW_TOKENS
from pera_lightning.functional.distributed import is_distributed
from pera_lightning.functional.expansion.coefficient_scale import scaled_coefficients
from pera_lightning.functional.linear import add_adapter, apply_operands, needs_gradient
from pera_lightning.functional.operands import Operands, prepare
from pera_lightning.functional.precision import factor_dtype, product_dtype, without_autocast
from pera_lightning.functional.tensor_parallel import add_local_adapter, local_part
from pera_lightning.layers.merging import (
    MergeTarget,
    Unmerged,
    expect_merged,
    fold,
    refuse_infinite,
    refuse_merging_twice,
    refuse_other_values,
    refuse_training_merged,
)
from pera_lightning.layers.operand_cache import Factors, OperandCache, can_be_compared


class PeraLinear(nn.Module):
    """`y = base(x) + scaling * dropout(x) (left @ right)^T` with the expanded factors of A, B and h.

    Wraps the layer instead of inheriting from it, so that any base (dense, transposed, quantised) serves.
    The start is `B = 0, h = 0`: the output equals the base's exactly.

    Args:
        base_layer: The linear layer to adapt; it is not copied.
        config: The adapter's options.
        rank: Rank of this layer, if `config.rank_pattern` gives it another one.
        alpha: Alpha of this layer, if `config.alpha_pattern` gives it another one.

    Attributes:
        pera_A: Shape (rank, in). Made in float32 on half-precision bases, else in the base's dtype; converting the
            whole model afterwards (Trainer(precision="bf16-true")) converts it too.
        pera_B: Shape (out, rank), the dtype of A.
        pera_h: Shape (number of monomials,), the dtype of A; None at order 1, where no coefficients exist.
        read_as_weight: Whether a gradient has come through `weight`, which the model reads without calling the layer.

    Raises:
        ConfigError, TargetError: Too many expanded columns; a layer of no supported kind, or that does more.
    """

    ADAPTER_PARAMETERS = ("pera_A", "pera_B", "pera_h")
    """Names of the parameters that belong to the adapter; everything else belongs to the base."""

    LINEAR = True
    """Whether it sits on layers that are called with feature vectors."""

    _kept_options: tuple[Any, Options] | None = None

    def __init__(
        self,
        base_layer: nn.Module,
        config: PeraConfig,
        *,
        rank: int | None = None,
        alpha: float | None = None,
    ) -> None:
        super().__init__()
        base = adaptable_base(base_layer, linear=self.LINEAR)
        base.prepare(base_layer)
        self.base_layer = base_layer
        self.config = config
        self.rank = config.rank if rank is None else rank
        self.alpha = config.alpha if alpha is None else alpha
        self.scaling = config.scaling(self.rank, self.alpha)
        self.in_features, self.out_features = base.features(base_layer)
        check_columns("a layer", self.rank, config.order, config.terms, base.features(base_layer))
        self.enabled = True
        self.read_as_weight = False
        # Hides its layer from the module tree: it must neither be saved nor follow the base to another dtype.
        self._unmerged: Unmerged | None = None
        self._operand_cache = OperandCache()
        self._make_parameters()
        # Not train(), which reaches down: modules inside the base may be in another mode.
        self.training = base_layer.training

    def _make_parameters(self) -> None:
        device = self._base.storage(self.base_layer).device
        options: dict[str, Any] = {"device": device, "dtype": factor_dtype(self._base.dtype(self.base_layer))}
        self.pera_A = nn.Parameter(torch.empty(self.rank, self.in_features, **options))
        self.pera_B = nn.Parameter(torch.empty(self.out_features, self.rank, **options))
        count = expanded_rank(self.rank, self.config.order, self.config.terms) - self.rank
        # A registered parameter without a gradient would stop DistributedDataParallel.
        self.pera_h = nn.Parameter(torch.empty(count, **options)) if count else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start values: A Kaiming-uniform with a = sqrt(5) as in LoRA, B and h zero."""
        nn.init.kaiming_uniform_(self.pera_A, a=math.sqrt(5))
        self.pera_B.zero_()
        if self.pera_h is not None:
            self.pera_h.zero_()

    @property
    def _base(self) -> Base:
        # Looked up each time: Lightning's BitsandbytesPrecision exchanges the base layer after the injection.
        return expect_base(self.base_layer)

    @property
    def quantization(self) -> str | None:
        """How the base's weight is quantised ("nf4", "nf4-dq", "fp4", "int8"), or None if it is not."""
        layer = self.base_layer if self._unmerged is None else self._unmerged.layer
        kind, steps = expect_base(layer).quantization(layer), getattr(layer, "loftq_steps", 1)
        # A base that LoftQ made is another one than plain quantisation makes.
        return kind if steps == 1 else f"{kind} after {steps} LoftQ steps"

    @property
    def coefficients(self) -> Tensor | None:
        """Coefficients h times `coefficient_scale`, shape (number of monomials,); None at order 1."""
        h = self.pera_h
        if h is None:
            return None
        config = self.config
        return scaled_coefficients(h, config.coefficient_scale, self.rank, config.order, config.terms, self.in_features)

    @property
    def merged(self) -> bool:
        """Whether the base's weight holds the adapter now."""
        return self._unmerged is not None

    @property
    def merged_into(self) -> MergeTarget:
        """How it is merged now, for `merge` to do it again."""
        return "requantized" if self._unmerged is not None and not self._unmerged.stand_in else "auto"

    @property
    def weight(self) -> Tensor:
        """The effective weight (out, in): the base's plus `delta_weight()` unless merged or disabled.

        Code that reads a layer's weight instead of calling the layer (attention fast paths of torch) thereby
        sees the adapter too. Differentiable; builds a dense matrix, so call the layer where you can.
        """
        base = self._base
        weight = base.weight(self.base_layer).to(base.dtype(self.base_layer))
        if self.merged or not self.enabled:
            return weight
        weight = weight + self.delta_weight().to(weight.dtype)
        if weight.requires_grad and not torch.compiler.is_compiling():
            weight.register_hook(self._note_read)
        return weight

    def _note_read(self, _: Tensor) -> None:
        self.read_as_weight = True

    @property
    def bias(self) -> Tensor | None:
        """The base's bias."""
        return self.base_layer.bias  # type: ignore[return-value]

    def adapter(self) -> dict[str, nn.Parameter]:
        """The adapter's parameters by their names; without pera_h at order 1."""
        parameters = {name: getattr(self, name) for name in self.ADAPTER_PARAMETERS}
        return {name: parameter for name, parameter in parameters.items() if parameter is not None}

    def delta_weight(self) -> Tensor:
        """The dense weight change of the adapter, shape (out, in), the dtype of A; differentiable."""
        with without_autocast(self.pera_A.device.type):
            return delta_weight(
                self.pera_A,
                self.pera_B,
                self.coefficients,
                order=self.config.order,
                terms=self.config.terms,
                scaling=self.scaling,
            )

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The adapted layer's output.

        Args:
            x: Input, shape (..., in).
            *args: Passed to the base layer.
            **kwargs: Passed to the base layer.

        Returns:
            Shape (..., out), the dtype of the base's output.

        Raises:
            InjectionError: The adapter is merged and the layer trains: it would get no gradient.
        """
        if self.merged:
            return self._forward_merged(x, *args, **kwargs)
        output = self.base_layer(x, *args, **kwargs)
        if not self.enabled:
            return output
        A, B, h = self.pera_A, self.pera_B, self.pera_h
        # Its weight is split over processes.
        if is_distributed(output):
            return add_local_adapter(output, x, local_part(A), local_part(B), local_part(h), self._options)
        if self._keeps_operands(output, x, A, B, h):
            dtype = product_dtype(x)
            return apply_operands(self._operands(x, dtype, A, B, h), output, x, dtype)
        return add_adapter(output, x, A, B, h, self._options)

    def _keeps_operands(self, output: Tensor, x: Tensor, A: Tensor, B: Tensor, h: Tensor | None) -> bool:
        """Whether to keep the expanded factors for the next call: where making them costs more than using them."""
        # A compiler would take what is kept for a constant.
        if self.training or torch.compiler.is_compiling() or needs_gradient(output, x, A, B, h):
            return False
        return can_be_compared(x, A, B, h) and x.numel() <= FEW_TOKENS * self.in_features

    @property
    def _options(self) -> Options:
        # A compiler would guard what is kept.
        if torch.compiler.is_compiling():
            return options_of(self.config, self.scaling, self.in_features, self.training)
        key = (self.training, self.scaling, self.config)
        if self._kept_options is None or self._kept_options[0] != key:
            self._kept_options = key, options_of(self.config, self.scaling, self.in_features, self.training)
        return self._kept_options[1]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_kept_options"}

    def _operands(self, x: Tensor, dtype: torch.dtype, A: Tensor, B: Tensor, h: Tensor | None) -> Operands:
        """What to multiply few tokens with where no gradient is asked for; kept for the next call."""
        tokens, options = x.numel() // self.in_features, self._options
        if options.order == 1:
            return prepare("factored", A, B, h, options.form(), dtype)

        def make(factors: Factors) -> Operands:
            shape = (tokens, self.rank, self.in_features, self.out_features)
            path = chosen_path(options, *shape, x.device.type, prepared=True)
            with torch.no_grad(), without_autocast(x.device.type):
                return prepare(path, *factors, options.form(), dtype)

        return self._operand_cache.get((A, B, h), (tokens, dtype, options), make)

    def train(self, mode: bool = True) -> Self:
        """See `nn.Module.train`; gives back the memory of the expanded factors kept in eval mode."""
        self._operand_cache.clear()
        return super().train(mode)

    def _apply(self, fn: Callable[..., Tensor], recurse: bool = True) -> Self:
        # What .to(), .half() and the like go through.
        self._operand_cache.clear()
        if self._unmerged is not None and self._unmerged.stand_in:
            self._unmerged.layer._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # What torch calls for each module that is loaded.
        if self.merged:
            refuse_other_values(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _forward_merged(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        refuse_training_merged(self, "a merged adapter", self.pera_A)
        if self._unmerged is None or not self._unmerged.stand_in:
            return self.base_layer(x, *args, **kwargs)
        # The quantised layer took inputs of any dtype, the plain one in its place only those of its own.
        return self.base_layer(x.to(self._base.dtype(self.base_layer)), *args, **kwargs).to(x.dtype)

    @in_turn
    @torch.no_grad()
    def merge(self, into: MergeTarget = "auto") -> None:
        """Fold the adapter into the base's weight, rounding once. What it takes to `unmerge` to the same bits is kept.

        Args:
            into: For a quantised base, "dequantized": a plain layer in the dtype that the base was quantised from
                computes in its place until `unmerge`, or "requantized": the sum is quantised again, which saves memory
                and changes the outputs. "auto" is "dequantized". A dense base gets a new weight in any case.

        Raises:
            InjectionError: Already merged, or a value is not finite, of the adapter or of the sum in its dtype.
        """
        refuse_merging_twice(self, "the adapter")
        refuse_infinite(self.adapter())
        self.base_layer, self._unmerged = fold(self.base_layer, self.merged_weight(), into)

    @torch.no_grad()
    def merged_weight(self, start: Tensor | None = None) -> Tensor:
        """The base's weight plus `delta_weight()`, in float32 or better and not rounded yet.

        Args:
            start: Shape (out, in): what to add to instead of the base's present weight.
        """
        change = self.delta_weight()
        weight = self._base.weight(self.base_layer) if start is None else start.to(change.device)
        dtype = torch.promote_types(torch.promote_types(weight.dtype, change.dtype), torch.float32)
        return weight.to(dtype) + change.to(dtype)

    @in_turn
    def unmerge(self) -> None:
        """Take the adapter out of the base's weight again: the original bits come back.

        Raises:
            InjectionError: Not merged.
        """
        unmerged = expect_merged(self._unmerged, "the adapter")
        if unmerged.stand_in:
            unmerged.layer.train(self.training)
        self.base_layer, self._unmerged = unmerged.restore(), None

    def extra_repr(self) -> str:
        """Shape and form of the adapter."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}, "
            f"order={self.config.order}, terms={self.config.terms!r}, scaling={self.scaling:g}"
        )
