"""`PeraConfig`: what a user chooses about an adapter, validated on construction."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal

from pera_lightning.errors import ConfigError, shown
from pera_lightning.families import Terms
from pera_lightning.form_bounds import (
    MAX_NAME,
    check_alpha,
    check_coefficient_scale,
    check_dropout,
    check_order,
    check_products,
    check_rank,
    check_terms,
)
from pera_lightning.patterns import LinearMatcher, check_count, check_expression, check_pattern, is_plain, typed_match
from pera_lightning.token_ids import TokenIds, normalised

Bias = Literal["none", "adapted", "all"]
BIASES: tuple[Bias, ...] = ("none", "adapted", "all")
Init = Literal["default", "loftq"]
INITS: tuple[Init, ...] = ("default", "loftq")
ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class PeraConfig:
    """Options of a PERA adapter (arXiv 2604.11841).

    Args:
        rank: Number of rows of A and columns of B before the expansion. At least 1.
        order: Highest degree of the monomials: 1 is plain LoRA, 2 the paper's square and cross terms.
        terms: Which monomials of degree 2 and above take part: "full" all of them, "square" only pure
            powers (paper Eq. 10), "cross" only mixed ones (Eq. 11).
        alpha: Numerator of the scaling `alpha / rank`. None means alpha = rank, the paper's scaling of 1.
        use_rslora: Scale by `alpha / sqrt(rank)` instead.
        dropout: Probability of zeroing an entry of the adapter's input while training, in [0, 1); met to 1 / 65536.
            Where the model reads a layer's weight instead of calling it (`nn.MultiheadAttention`'s out_proj), there is
            no such input, and no dropout.
        coefficient_scale: Constant factor on the coefficients h. 1.0 is the paper's form; "auto" gives each
            degree d the factor `sqrt(3 * in_features) ** (d - 1)`, with which the expanded rows of A start
            with the root mean square of the plain ones.
        target_modules: The layers to adapt: "all-linear" (every linear layer but the output head), a list of
            name suffixes such as `["q_proj", "v_proj"]`, which may name embeddings too, or one regular expression
            matched against the whole names of linear layers.
        exclude_modules: Layers to leave alone, by the same rules; naming a container leaves out all within.
        modules_to_save: Name suffixes of modules that are trained and saved whole, for example a new head. They come
            before `target_modules`: nothing in them is adapted.
        bias: Which biases are trained and saved beside the factors: "none", those of "adapted" layers, or "all" outside
            `exclude_modules`.
        trainable_tokens: Tokens whose rows of an embedding are trained and saved, and nothing else of it: ids (of the
            model's input embedding), or name suffix of an embedding or output head -> ids. What shares the weight (a
            tied head) changes with it.
        rank_pattern: Other ranks for some layers: name suffix or regular expression -> rank. The first entry
            that matches a layer counts.
        alpha_pattern: Other alphas for some layers, by the same rules.
        init: How A and B start: "default" (B = 0: the model computes what its base does), or on a quantised base
            "loftq": the best low-rank approximation of what quantisation took away (LoftQ, arXiv 2310.08659), so that
            the model starts closer to the floating one, whose weights it needs. h starts at 0 in both.
        loftq_steps: With "loftq": how often quantisation and approximation take turns. 1 leaves the quantised base as
            it is; more change its bits, and loading the adapter then takes the floating weights again.

    Raises:
        ConfigError: An option has a wrong type or value.
    """

    rank: int = 8
    order: int = 2
    _: KW_ONLY
    terms: Terms = "full"
    alpha: float | None = None
    use_rslora: bool = False
    dropout: float = 0.0
    coefficient_scale: float | Literal["auto"] = 1.0
    target_modules: str | Sequence[str] = ALL_LINEAR
    exclude_modules: str | Sequence[str] = ()
    modules_to_save: Sequence[str] = ()
    bias: Bias = "none"
    trainable_tokens: TokenIds | None = None
    rank_pattern: Mapping[str, int] | None = None
    alpha_pattern: Mapping[str, float] | None = None
    init: Init = "default"
    loftq_steps: int = 1
    _stored: ClassVar[bool] = False
    """Whether the options come out of a file: nothing is asked of their patterns until they are matched."""

    def __post_init__(self) -> None:
        check_rank(self.rank)
        check_order(self.order)
        check_terms(self.terms)
        if self.alpha is not None:
            check_alpha("alpha", self.alpha)
        if not isinstance(self.use_rslora, bool):
            raise ConfigError(
                "use_rslora is a switch.",
                got=shown(self.use_rslora),
                expected="True or False",
                fix="use a bool",
            )
        check_dropout(self.dropout)
        check_coefficient_scale(self.coefficient_scale)
        self._check_init()
        if self.bias not in BIASES:
            raise ConfigError(
                "bias says which biases are trained.",
                got=shown(self.bias),
                expected=" or ".join(map(repr, BIASES)),
                fix="use 'none', or 'adapted' for those of the adapted layers",
            )
        self._normalise_names()
        object.__setattr__(self, "trainable_tokens", normalised(self.trainable_tokens))
        self._check_patterns()
        ranks = [self.rank, *(self.rank_pattern or {}).values()]
        check_products(min(ranks), self.order, self.terms)

    def _check_init(self) -> None:
        if self.init not in INITS:
            raise ConfigError(
                "init says how the factors start.",
                got=shown(self.init),
                expected=" or ".join(map(repr, INITS)),
                fix="use 'default', or 'loftq' on a quantised base",
            )
        check_rank(self.loftq_steps, "loftq_steps", fix="use 1, the usual one")

    @property
    def base_steps(self) -> int:
        """How often the start quantises the base: 1 unless LoftQ alternates."""
        return self.loftq_steps if self.init == "loftq" else 1

    def _normalise_names(self) -> None:
        for field in ("target_modules", "exclude_modules"):
            value = getattr(self, field)
            if isinstance(value, str):
                self._check_expression(field, value)
            else:
                object.__setattr__(self, field, _names(field, value))
        object.__setattr__(self, "modules_to_save", _names("modules_to_save", self.modules_to_save))
        if not self.target_modules:
            raise ConfigError(
                "No target modules are named.",
                got=shown(self.target_modules),
                expected='"all-linear", a list of name suffixes or a regular expression',
                fix='leave target_modules out to adapt every linear layer ("all-linear")',
            )

    def _check_patterns(self) -> None:
        for field in ("rank_pattern", "alpha_pattern"):
            value = getattr(self, field)
            if value is None:
                continue
            if not isinstance(value, Mapping):
                raise ConfigError(
                    f"{field} maps layer names to values.",
                    got=shown(value),
                    expected="a mapping such as {'down_proj': 16}",
                    fix="write it as a mapping",
                )
            for pattern, entry in value.items():
                self._check_expression(field, pattern)
                if field == "rank_pattern":
                    check_rank(entry, f"rank_pattern[{shown(pattern)}]")
                else:
                    check_alpha(f"alpha_pattern[{shown(pattern)}]", entry)
            check_count(field, value)
            object.__setattr__(self, field, dict(value))

    def _check_expression(self, field: str, pattern: str) -> None:
        check_pattern(field, pattern)
        if not (self._stored or is_plain(pattern)):
            check_expression(field, pattern)

    @property
    def full_match(self) -> Callable[[str, str], bool]:
        """What says whether an expression of this config matches the whole of a name, given in this order."""
        return LinearMatcher().full_match if self._stored else typed_match

    def scaling(self, rank: int | None = None, alpha: float | None = None) -> float:
        """Factor on the adapter's output.

        Args:
            rank: Rank of the layer, if it differs from the config's.
            alpha: Alpha of the layer, if it differs from the config's.

        Returns:
            `alpha / rank`, or `alpha / sqrt(rank)` with `use_rslora`; alpha defaults to the rank.
        """
        rank = self.rank if rank is None else rank
        alpha = self.alpha if alpha is None else alpha
        alpha = rank if alpha is None else alpha
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def to_dict(self) -> dict[str, Any]:
        """The options as plain types (numbers, strings, lists, dicts), fit for JSON, YAML and checkpoints."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PeraConfig:
        """The config whose `to_dict` gave `values`.

        They may come out of anybody's file. Their patterns are matched in bounded time, which leaves out a few features
        of regular expressions, see `LinearMatcher`; loading an adapter needs none of them.

        Raises:
            ConfigError: A key is no option, or a value is wrong.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(
                "Options are a mapping.", got=shown(values), expected="what to_dict() gives", fix="name each option"
            )
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(str(name)[:MAX_NAME], known, n=1)
                raise ConfigError(
                    "Unknown option of PeraConfig.",
                    got=shown(name),
                    expected=", ".join(known),
                    fix=f"did you mean {near[0]!r}?" if near else "remove it",
                )
        config = cls.__new__(cls)
        object.__setattr__(config, "_stored", True)
        config.__init__(**values)  # type: ignore[misc]
        return config


def _names(field: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ConfigError(
            f"{field} is a list of name suffixes.",
            got=shown(value),
            expected="e.g. ['score']",
            fix="write a list",
        )
    for name in value:
        if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
            raise ConfigError(
                f"{field} holds something that is no name.",
                got=shown(name),
                expected=f"non-empty strings of at most {MAX_NAME:,} characters",
                fix="name modules as in model.named_modules()",
            )
        check_pattern(field, name)
    return tuple(value)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    return list(value) if isinstance(value, tuple) else value
