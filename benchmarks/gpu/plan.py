"""Every row that is measured, the most important first: a short run, or a slow card, ends somewhere in it."""

from __future__ import annotations

from typing import Any, NamedTuple

from benchmarks.gpu.card import ROOT

STEP: dict[str, Any] = {
    "shape": "llama3.2-1b",
    "rank": 8,
    "batch": 4,
    "length": 512,
    "checkpointing": False,
    "quant": None,
    "dropout": 0.05,
    "order": 2,
    "terms": "full",
}
"""The row that the others differ from."""
LARGE = {**STEP, "shape": "llama3-8b", "rank": 16, "batch": 16, "length": 256, "checkpointing": True}
FOUR_BIT = {**STEP, "shape": "llama3-8b", "checkpointing": True, "quant": "nf4-dq"}
SMALL = {**STEP, "shape": "smollm2-135m", "batch": 8, "length": 256}
TINY = {"batch": 2, "length": 16}
ALIKE = ("rank", "shape")


class Row(NamedTuple):
    """One measurement."""

    part: str
    """What is measured: a key of `benchmarks.gpu.measuring.PARTS`."""
    settings: dict[str, Any]
    seconds: float
    """So long it takes at least on a fast card: it is not begun with less time left."""

    @property
    def name(self) -> str:
        """By which it is known in every run."""
        return name_of(self.part, self.settings)


def rows(is_tiny: bool = False) -> list[Row]:
    """In the order in which they are measured. A trial leaves out what differs in rank or shape only."""
    if not is_tiny:
        return _rows()
    small = [row._replace(settings=_tiny(row), seconds=0) for row in _rows()]
    kinds = [(row.part, {key: value for key, value in row.settings.items() if key not in ALIKE}) for row in small]
    return [row for number, row in enumerate(small) if kinds.index(kinds[number]) == number]


def name_of(part: str, settings: dict[str, Any]) -> str:
    """What distinguishes a row from the others of its part, in words."""
    if part == "estimate":
        return settings["config"]
    words = [settings["shape"] + (f" {settings['quant']}" if settings["quant"] else ""), f"r={settings['rank']}"]
    if part == "batch":
        words.append(f"rows of {settings['length']}")
    elif part != "decode":
        words.append(f"{settings['batch']} x {settings['length']}")
    words += [f"{settings['layers']} layers"] if "layers" in settings else []
    words += ["checkpointing"] if settings["checkpointing"] else []
    words += [f"order {settings['order']}"] if settings["order"] != 2 else []
    words += [f"{settings['terms']} only"] if settings["terms"] != "full" else []
    words += [f"dropout {settings['dropout']:g}"] if settings["dropout"] != 0.05 and part != "decode" else []
    return ", ".join(words)


def _rows() -> list[Row]:
    configs = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "configs").glob("qpera_*.yaml"))]
    by_size = sorted(configs, key=lambda config: ("8b" not in config, "1b" not in config))
    first, *others = [Row("estimate", {"config": config}, 12) for config in by_size]
    decode = {**STEP, "dropout": 0.0}
    search = {**STEP, "first": 8, "most": 1024, "seconds": 15}
    return [
        _step(STEP),
        _step(SMALL),
        _step(LARGE),
        _step(FOUR_BIT),
        Row("decode", decode, 4),
        first,
        *(_step(STEP, rank=rank) for rank in (4, 16, 32)),
        _step(STEP, dropout=0.0),
        _step(STEP, order=1),
        _step(STEP, order=3),
        _step(STEP, terms="square"),
        Row("compile", {**STEP, "layers": 2, "backend": "inductor"}, 25),
        _step(LARGE, rank=4),
        _step(LARGE, dropout=0.0),
        _step(LARGE, terms="square"),
        Row("batch", search, 10),
        _step(LARGE, rank=32),
        _step(FOUR_BIT, rank=16),
        _step(STEP, checkpointing=True),
        *others,
        *(_step(SMALL, rank=rank) for rank in (4, 16, 32)),
        Row("decode", {**decode, "rank": 32}, 4),
        Row("batch", {**search, "checkpointing": True}, 10),
    ]


def _step(settings: dict[str, Any], **changes: Any) -> Row:
    large = settings["shape"] == "llama3-8b"
    return Row("step", {**settings, **changes}, 10 if large else 3)


def _tiny(row: Row) -> dict[str, Any]:
    settings = row.settings
    shrunk = {key: value for key, value in TINY.items() if key in settings}
    if row.part == "batch":
        shrunk |= {"first": 1, "most": 2}
    if row.part == "compile":
        shrunk |= {"layers": 1, "backend": "eager"}
    return {**settings, **shrunk}
