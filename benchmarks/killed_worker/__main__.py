"""Kill one of two workers, in every way of starting them; prints a table and writes docs/killed_worker.md.

make killed-worker
python -m benchmarks.killed_worker --timeout 10
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.killed_worker.killing import Ending, Killing, Resumed, kill, resume
from benchmarks.strategies.hosts import refusal

PAGE = Path(__file__).parents[2] / "docs" / "killed_worker.md"
COLUMNS = (
    "started by",
    "killed",
    "seconds until all have ended",
    "orphans",
    "resumed loss",
    "uninterrupted",
    "bitwise",
)
INTRODUCTION = """# A killed worker

A run of two processes (DDP over gloo, with dropout and shuffling) is interrupted in the middle of an epoch: one worker
gets SIGKILL, or, with two hosts, its host loses its power: its cable goes dead and everything on it ends, so that not
even closed connections tell the other host. The hosts are network namespaces on one machine. Then the run goes on with
`fit(ckpt_path="last")`. *Loss* is that of the last step, mean of both ranks; *bitwise*: every later loss of both ranks
and the adapter equal those of the uninterrupted run to the last bit.

`make killed-worker` runs all of it again and writes this page.
"""


def main() -> None:
    """Kill, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timeout", type=float, default=30, help="seconds of the process group")
    arguments = parser.parse_args()
    console = Console()
    killings = [Killing(launcher, victim) for launcher in ("lightning", "torchrun") for victim in (0, 1)]
    not_permitted = refusal()
    if not_permitted is None:
        killings += [Killing("two hosts", victim) for victim in (0, 1)]
    else:
        console.print(f"two hosts: not permitted here ({not_permitted})")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        endings = []
        for killing in killings:
            with console.status(f"{killing.launcher}: rank {killing.victim}"):
                endings.append(kill(killing, folder, arguments.timeout))
        with console.status("going on"):
            resumed = resume(folder, killings)
        rows = [cells(*row) for row in zip(killings, endings, resumed, strict=True)]
        messages = sorted({line.replace(name, "runs") for ending in endings for line in ending.messages})
    show(console, rows, messages)
    # A page without the hosts would take away what another machine has shown.
    if not_permitted is None:
        PAGE.write_text(page(rows, messages[0], arguments.timeout), encoding="utf-8")


def cells(killing: Killing, ending: Ending, resumed: Resumed) -> list[str]:
    """One row."""
    return [
        killing.launcher,
        f"{'host of rank' if killing.launcher == 'two hosts' else 'rank'} {killing.victim}",
        f"{ending.seconds:.1f}",
        str(ending.orphans),
        f"{resumed.loss:.6f}",
        f"{resumed.whole_loss:.6f}",
        "yes" if resumed.bitwise else "no",
    ]


def show(console: Console, rows: list[list[str]], messages: list[str]) -> None:
    """Print messages and table."""
    for message in messages:
        console.print(message, highlight=False, markup=False)
    table = Table(*COLUMNS)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def page(rows: list[list[str]], message: str, timeout: float) -> str:
    """The page, as Markdown."""
    lines = [f"| {' | '.join(row)} |" for row in (COLUMNS, ["---"] * len(COLUMNS), *rows)]
    return "\n".join(
        [
            INTRODUCTION,
            *lines,
            "",
            f"The timeout was {timeout:g} s: `DDPStrategy(timeout=timedelta(seconds={timeout:g}))`. Without",
            "it, it is 30 minutes. The processes also wait no longer for each other at the start. A killed worker is",
            "noticed at once, since its connections are closed; only a host that falls silent needs the timeout.",
            "This is what PeraCallback says on a rank that is left, before the stack of calls:",
            "",
            "```",
            message,
            "```",
            "",
        ]
    )


if __name__ == "__main__":
    main()
