"""What exports of the quickstart's adapter lose: `make exports` after `make quickstart`.

Writes `docs/export.md` and `docs/export_rank.png`.
"""

from __future__ import annotations

import datetime
import tempfile
from pathlib import Path
from typing import Any

import matplotlib
import torch
from rich.console import Console
from rich.progress import track

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.__main__ import header
from pera_lightning import export_lora, export_merged
from pera_lightning.data.chat.conversations import BadRows, Conversation, read_conversations
from pera_lightning.data.chat.prompts import ChatEncoder
from pera_lightning.data.reading.row_files import read_rows
from pera_lightning.export.certificate import Reference
from pera_lightning.export.export_check import check_with_peft, row_inputs
from pera_lightning.export.lora.lora_applied import lora_applied
from pera_lightning.export.lora.peft_format import read_peft
from pera_lightning.loading.adapted_model import load_adapted_model
from pera_lightning.models.generation import generate_answers

ADAPTER = Path("runs/quickstart/fit/adapter")
ROWS = Path("data/tool_calls/test.jsonl")
SYSTEM_PROMPT = "Call a tool."
POSITIONS = 2000
REQUESTS = 100
RANKS = (1, 2, 3, 4, 6, 8)
INTRODUCTION = """# What an export loses

The adapter of `make quickstart` (SmolLM2-135M, rank 4, order 2: K = 14) as a LoRA and as a merged model, compared with
the adapted model in float32 on {positions:,} positions of held-out requests. `make exports` after `make
quickstart` measures again and writes this page.
"""
"""Head of the page."""
LIMITS = """## What an export may differ by

An export that differs by more than rounding is refused: the command ends with an error, and no folder appears, or the
one that was there stays. The measure is what one rounding does to the outputs of the model at hand: the adapted model
is called three more times, with noise of that size on what each adapted layer returns. An export that computes the same
is 0.7 to 1.5 such roundings away, whatever the dtype (a dozen families of models, this one included).

| computed in, or weights rounded to | rounds by | limit, in roundings | why |
| --- | --- | --- | --- |
| float32 | 6e-8 | 16 | sums are float32 too and round at every step |
| bfloat16 | 4e-3 | 4 | sums are float32 and round once |
| float16 | 5e-4 | 4 | the same |

Counted is the median position, and the mean of all positions at an eighth: in half precision a router may send a token
to another expert. What was asked for is called *expected* in the report: a rank below the exact one, factors in half
precision (loaded back, these are held against what the factors compute, within the same limits), the merge onto the
weights before quantisation. NaN, and comparisons of nothing, are refused.

PEFT only warns of tensors that it leaves out. So an export in its format is loaded by PEFT, where it is installed, and
every tensor of the file is looked up in its layer. In mixture-of-experts models PEFT takes `gate_proj`, `up_proj` and
`down_proj` of dense layers and shared experts for the fused experts; their factors are named as LoRA of the layers'
weights (`target_parameters`, PEFT 0.17 and later). PEFT adds these to the weight, in the dtype of the base: load such
an adapter over a float32 base where bfloat16 is too coarse. Servers that read the tensors' names, as vLLM does, see an
ordinary LoRA; SGLang wants those layers named on its command line (`--lora-target-modules`).
"""
"""Its end."""
Row = list[str]


def main() -> None:
    """Export, compare and write the page."""
    model, tokenizer = load_adapted_model(ADAPTER, dtype="float32")
    encoder = ChatEncoder(tokenizer, max_length=4096, system_prompt=SYSTEM_PROMPT)
    inputs = row_inputs(ROWS, encoder, POSITIONS, model)
    reference = Reference.of(model, inputs)
    requests = list(read_conversations(str(ROWS), read_rows(ROWS), "auto", BadRows("error")))[:REQUESTS]
    with tempfile.TemporaryDirectory() as folder:
        exact, cut, curve = [], [], []
        report = export_lora(model, Path(folder) / "exact", inputs=inputs)
        for rank in track([*RANKS, report.rank], "ranks"):
            out = Path(folder) / str(rank)
            found = export_lora(ADAPTER, out, rank)
            kept = [fit.kept_energy for fit in found.layers.values()]
            with lora_applied(model, read_peft(out)):
                certificate = reference.compare(model, "")
                matches = exact_match(model, tokenizer, encoder, requests)
            mean = sum(kept) / len(kept)
            curve.append((rank, mean, certificate.agreement, matches))
            cut.append(
                [
                    f"{rank}{' (exact)' if found.exact else ''}",
                    f"{mean:.4%}",
                    f"{min(kept):.4%}",
                    f"{certificate.max_difference:.1e}",
                    f"{certificate.agreement:.2%}",
                    f"{matches:.0%}",
                ]
            )
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            adapted, _ = load_adapted_model(ADAPTER, dtype="float32")
            out = Path(folder) / f"peft_{dtype}"
            certificate = export_lora(adapted, out, dtype=dtype, inputs=inputs, check=check_with_peft).certificate
            exact.append(["LoRA", str(dtype).removeprefix("torch."), *_cells(certificate)])
        texts = [tokenizer.decode(call["input_ids"][0]) for call in inputs]
        for name in ("float32", "bfloat16"):
            merged = export_merged(ADAPTER, Path(folder) / f"merged_{name}", dtype=name, prompts=texts)
            exact.append(["merged model", name, *_cells(merged.certificate)])
    write(exact, cut, curve, reference)


def exact_match(model: Any, tokenizer: Any, encoder: ChatEncoder, requests: list[Conversation]) -> float:
    """Part of the requests that are answered to the letter, decoded greedily."""
    hits = 0
    for start in range(0, len(requests), 50):
        some = requests[start : start + 50]
        prompts = [torch.tensor(encoder.encode_prompt(request.messages[:-1])) for request in some]
        answers = generate_answers(model, tokenizer, prompts, 36)
        wanted = [request.messages[-1]["content"] for request in some]
        hits += sum(answer.strip() == text.strip() for answer, text in zip(answers, wanted, strict=True))
    return hits / len(requests)


def write(exact: list[Row], cut: list[Row], curve: list[tuple[int, float, float, float]], reference: Reference) -> None:
    """The page and its picture."""
    positions = sum(len(rows) for rows in reference.outputs)
    parts = [
        INTRODUCTION.format(positions=positions),
        f"{datetime.date.today()}: {header()}. "
        f"The adapter itself changes logits by up to {reference.max_change:.0f}.\n",
        "## Exact\n",
        _markdown(["export", "dtype", "loaded by", "largest difference of a logit", "same top token"], exact),
        "A merged model in bfloat16 is compared with the adapted model over a bfloat16 base.\n",
        "## Cut to a rank by singular values\n",
        _markdown(
            ["rank", "energy kept (mean)", "worst layer", "largest difference", "same top token", "exact match"], cut
        ),
        f"Exact match is that of the tool call, of {REQUESTS} requests (a standard error of 4 points).\n",
        "![Rank against what is kept](export_rank.png)\n",
        LIMITS,
    ]
    Path("docs/export.md").write_text("\n".join(parts), encoding="utf-8")
    _draw(curve, Path("docs/export_rank.png"))
    Console().print("\n".join(parts))


def _cells(certificate: Any) -> Row:
    return [certificate.route, f"{certificate.max_difference:.2e}", f"{certificate.agreement:.2%}"]


def _markdown(heading: Row, rows: list[Row]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _draw(curve: list[tuple[int, float, float, float]], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(6, 4))
    ranks, energy, agreement, matches = zip(*curve, strict=True)
    axes.plot(ranks, [100 * value for value in energy], "o-", label="energy kept (mean of layers)")
    axes.plot(ranks, [100 * value for value in agreement], "s-", label="same top token as the adapter")
    axes.plot(ranks, [100 * value for value in matches], "^-", label="exact match of the task")
    axes.set(xlabel="rank of the exported LoRA", ylabel="%", title="Cutting the quickstart's adapter (K = 14)")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


if __name__ == "__main__":
    main()
