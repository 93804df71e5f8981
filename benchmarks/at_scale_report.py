"""The counts of `benchmarks.at_scale` as tables for the screen, as `docs/at_scale.md` and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from rich.console import Console
from rich.table import Table

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Rows = list[dict[str, Any]]
Cells = list[list[str]]

GB = 2**30
RANK = 16
SHOWN = "70B"
PARTS = {
    "base": "base",
    "factors": "factors",
    "gradients": "their gradients",
    "optimizer": "AdamW",
    "gathered_root": "embeddings and head, gathered",
    "gathered_block": "a block, gathered",
    "gradients_on_their_way": "gradients on their way",
    "activations": "activations",
    "needed": "needed",
}
INTRODUCTION = """# Many GPUs, on paper

**These are counts, not measurements.** Llama-3.1 of 8, 70 and 405 billion parameters on 8 to 1024 GPUs: what one GPU
holds, and what it sends in a training step (one forward and one backward pass). No GPU was used; the shapes are those
of the published models, built without weights. `make at-scale` counts again and writes this page;
[benchmarks/results/at_scale.csv](../benchmarks/results/at_scale.csv) has all rows, ranks 8 and 16, PERA (order 2) and
LoRA (order 1).

The counting functions, `benchmarks.traffic` and `sharded_memory`, are those of the package. On a tiny
Llama in 2 and 4 CPU processes (gloo, torch 2.13), sharded by the package's own functions, the tests compare them with
every collective that torch issues and with every byte of parameters, gradients and optimizer states: equal for PERA and
LoRA under DDP and FSDP2, with sizes that do not divide evenly, and for PERA under tensor parallelism beside FSDP2
(2 x 2). Not compared with anything at these sizes: the activations (a step on torch's meta device), and what FSDP2
gathers beside the first block (read off torch's source).

- **Base** bfloat16, or nf4 with quantised scales (embeddings and head stay bfloat16); **factors** float32 in all linear
  layers but the head; AdamW.
- **Batch**: one row of 4096 tokens for each data-parallel process, gradient checkpointing, fused attention.
- **DDP**: every GPU has the base; only the adapter's gradients travel, and a few bytes of buffers.
- **FSDP2**: `fully_shard` on each block and on the whole, as `PeraCausalLM` calls it. Blocks are gathered for the
  forward and again for the backward pass, embeddings and head once; the adapter's gradients are reduced and scattered.
  Where the GPUs divide the columns of A but not its rows, the rank, A is sharded over its columns.
- **TP 8 + FSDP2**: 8 GPUs share each layer, the others shard. Each row-wise layer sums up its outputs going forward
  (the attention's again for checkpointing), each column-wise one its input's gradient going back, q, k, v, gate and up
  each for itself. The adapter adds the gradients of the factors that all 8 have, nothing else.
- **4-bit FSDP2**: packed weights are sharded, their scales are whole on every GPU. *Packed weights whole*: those too.
- **Sent** is what the ring algorithm makes each GPU send: 2 (n-1)/n of an all-reduce, (n-1)/n of an all-gather or a
  reduce-scatter. Several machines: the same bytes; which of them go over slower links is not said.
- **Needed** adds what `estimate` adds: 10 % of a step for the allocator and 0.6 GB for CUDA. GB are 2^30 bytes.

Left out: time of any kind (overlap, latency, bandwidth), the allocator beyond that rule, NCCL's own buffers, pipeline,
context and sequence parallelism, CPU offload, hybrid sharding, gradient accumulation (then FSDP2 gathers for every
batch), loading the weights.
"""


def show(rows: Rows, console: Console) -> None:
    """Print the main tables."""
    for title, cells in tables(rows):
        table = Table(title=title)
        for heading in cells[0]:
            table.add_column(heading, justify="right")
        for line in cells[1:]:
            table.add_row(*line)
        console.print(table)


def write(rows: Rows, folder: Path) -> None:
    """`at_scale.md` and `at_scale.png` in the folder."""
    draw(rows, folder / "at_scale.png")
    (folder / "at_scale.md").write_text(page(rows), encoding="utf-8")


def page(rows: Rows) -> str:
    """The text of `at_scale.md`."""
    parts = [INTRODUCTION, f"{findings(rows)}\n\n![Traffic at scale](at_scale.png)\n"]
    parts += [f"## {title}\n\n{_markdown(cells)}" for title, cells in tables(rows)]
    return "\n".join(parts)


def findings(rows: Rows) -> str:
    """What the counts say, with the figures put in."""
    pairs = list(zip(select(rows, adapter="LoRA"), select(rows, adapter="PERA"), strict=True))
    adapter = max(adapter_sent(pera) / adapter_sent(lora) - 1 for lora, pera in pairs)
    everything = max(pera["sent"] / lora["sent"] - 1 for lora, pera in pairs)
    ddp, fsdp2, many = (
        select(rows, model=SHOWN, rank=RANK, adapter="PERA", gpus=gpus, strategy=strategy)[0]
        for gpus, strategy in ((64, "DDP"), (64, "FSDP2"), (1024, "FSDP2"))
    )
    [few] = select(rows, model=SHOWN, rank=RANK, adapter="PERA", gpus=RANK, strategy="FSDP2")
    return f"""What the counts say:

- PERA's factors cost LoRA's traffic of the same rank plus h: in no row here does its adapter send more than
  {100 * adapter:.2f} % more, and in no row is all that a GPU sends more than {100 * everything:.2f} % more.
- Under FSDP2 the base is what travels: {100 * fsdp2["sent_base"] / fsdp2["sent"]:.0f} % of the bytes of the {SHOWN} on
  64 GPUs. Where every GPU can hold the base, DDP sends {fsdp2["sent"] / ddp["sent"]:.0f} times less; in 4 bits more
  bases fit. With tensor parallelism activations travel, in the forward and the backward pass.
- The adapter's part of FSDP2's traffic hardly grows with the GPUs: at rank {RANK} each sends
  {adapter_sent(few) / GB:.1f} GB for the adapter of the {SHOWN} on {few["gpus"]} GPUs and
  {adapter_sent(many) / GB:.1f} GB on {many["gpus"]}. `fully_shard` by itself would pad A to one row for each GPU:
  {many["gpus"] // RANK} times its size on {many["gpus"]}. h is padded to one entry for each GPU, which is most of what
  PERA sends more than LoRA on many."""


def tables(rows: Rows) -> list[tuple[str, Cells]]:
    """Title and cells of each."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    found = [(f"{model}: GB needed of a GPU (smallest card)", _needed(rows, model)) for model in models]
    found += [(f"{model}: GB that each GPU sends in a step", _sent(rows, model)) for model in models]
    found.append(("PERA against LoRA of the same rank, MB", _against_lora(rows)))
    found += [(f"{model}, 64 GPUs: GB of a GPU by part", _parts(rows, model)) for model in models]
    return found


def select(rows: Rows, **wanted: Any) -> Rows:
    """The rows with these values."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def _grid(rows: Rows, model: str, cell: Any) -> Cells:
    chosen = select(rows, model=model, rank=RANK, adapter="PERA")
    strategies = list(dict.fromkeys(row["strategy"] for row in chosen))
    gpus = list(dict.fromkeys(row["gpus"] for row in chosen))
    lines = [[name, *(cell(row) for row in select(chosen, strategy=name))] for name in strategies]
    return [[f"PERA, rank {RANK}", *(f"{number} GPUs" for number in gpus)], *lines]


def _needed(rows: Rows, model: str) -> Cells:
    return _grid(rows, model, lambda row: f"{row['needed'] / GB:,.1f} ({row['fits_gb'] or 'none'})")


def _sent(rows: Rows, model: str) -> Cells:
    return _grid(rows, model, lambda row: f"{row['sent'] / GB:,.2f}")


def _against_lora(rows: Rows) -> Cells:
    heading = ["model", "rank", "strategy", "GPUs", "adapter: LoRA", "PERA", "more", "all: LoRA", "PERA", "more"]
    cells = [heading]
    for pera in select(rows, adapter="PERA"):
        if pera["gpus"] not in (64, 1024) or pera["strategy"] not in ("DDP", "FSDP2", "TP 8 + FSDP2"):
            continue
        [lora] = select(rows, adapter="LoRA", **{name: pera[name] for name in ("model", "rank", "strategy", "gpus")})
        pairs = [(adapter_sent(lora), adapter_sent(pera)), (lora["sent"], pera["sent"])]
        shown = [text for pair in pairs for text in (*(f"{size / 1e6:,.2f}" for size in pair), _more(*pair))]
        cells.append([pera["model"], str(pera["rank"]), pera["strategy"], str(pera["gpus"]), *shown])
    return cells


def adapter_sent(row: dict[str, Any]) -> int:
    """Bytes that a GPU sends of factors and their gradients."""
    return row["sent_factors"] + row["sent_gradients"]


def _more(lora: int, pera: int) -> str:
    return f"{100 * (pera / lora - 1):.2g} %"


def _parts(rows: Rows, model: str) -> Cells:
    chosen = select(rows, model=model, rank=RANK, adapter="PERA", gpus=64)
    lines = [[row["strategy"], *(f"{row[part] / GB:,.2f}" for part in PARTS)] for row in chosen]
    return [[f"PERA, rank {RANK}", *PARTS.values()], *lines]


def _markdown(cells: Cells) -> str:
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], f"|{'---|' * len(cells[0])}", *lines[1:]]) + "\n"


def draw(rows: Rows, path: Path) -> None:
    """What a GPU sends in a step, by what it belongs to, and the adapter's part of it against the number of GPUs."""
    figure, (bars, lines) = plt.subplots(1, 2, figsize=(13, 4.5), layout="constrained")
    _draw_bars(bars, rows)
    _draw_lines(lines, rows)
    figure.savefig(path, dpi=120)
    plt.close(figure)


AXIS = "GB sent by each GPU in a step"
COLORS = {"LoRA": "tab:orange", "PERA": "tab:blue"}


def _draw_bars(axes: Any, rows: Rows) -> None:
    strategies = ["DDP", "FSDP2", "TP 8 + FSDP2", "4-bit DDP", "4-bit FSDP2"]
    shown = select(rows, model=SHOWN, rank=RANK, gpus=64)
    chosen = {adapter: [select(shown, adapter=adapter, strategy=name)[0] for name in strategies] for adapter in COLORS}
    groups = {
        "base weights": ("gray", [row["sent_base"] for row in chosen["PERA"]]),
        "activations": ("tab:green", [row["sent_activations"] for row in chosen["PERA"]]),
        **{
            f"{adapter}: factors and gradients": (COLORS[adapter], [adapter_sent(row) for row in chosen[adapter]])
            for adapter in COLORS
        },
    }
    for place, (label, (color, sizes)) in enumerate(groups.items()):
        at = [index + 0.2 * (place - 1.5) for index in range(len(strategies))]
        axes.bar(at, [size / GB for size in sizes], 0.2, color=color, label=label)
    axes.set_xticks(range(len(strategies)), strategies)
    axes.set(
        title=f"Llama-3.1-{SHOWN}, 64 GPUs, rank {RANK}: what travels", ylabel=AXIS, yscale="log", ylim=(0.1, 1000)
    )
    axes.legend(fontsize="small", loc="upper right")


def _draw_lines(axes: Any, rows: Rows) -> None:
    for strategy, marker in (("DDP", "o"), ("FSDP2", "s"), ("TP 8 + FSDP2", "^")):
        for adapter, style in (("PERA", "-"), ("LoRA", "--")):
            chosen = select(rows, model=SHOWN, rank=RANK, adapter=adapter, strategy=strategy)
            gpus, sizes = [row["gpus"] for row in chosen], [adapter_sent(row) / GB for row in chosen]
            label = f"{adapter}, {strategy}"
            axes.plot(gpus, sizes, style, color=COLORS[adapter], marker=marker, label=label)
    base = select(rows, model=SHOWN, rank=RANK, adapter="PERA", strategy="FSDP2")
    axes.plot(
        [row["gpus"] for row in base], [row["sent_base"] / GB for row in base], ":", color="gray", label="base, FSDP2"
    )
    title = f"The adapter's part: factors and gradients ({SHOWN}, rank {RANK})"
    axes.set(title=title, xlabel="GPUs", ylabel=AXIS, xscale="log", yscale="log", ylim=(0.1, 10000))
    axes.set_xticks(gpus, [str(number) for number in gpus])
    axes.minorticks_off()
    axes.legend(fontsize="small", loc="upper left", ncols=2)
