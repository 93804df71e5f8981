"""GLUE's tab-separated files, and the two parts of a validation set."""

from __future__ import annotations

from pathlib import Path

import pytest

from pera_lightning.data.reading.glue_files import GLUE_TASKS, GlueRow, cut_in_two, read_glue_file
from pera_lightning.errors import ConfigError, DataError

STSB = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
PAIRS = "index\tsentence1\tsentence2\tlabel\n"


@pytest.mark.parametrize(
    ("task", "text", "row"),
    [
        ("sst2", "sentence\tlabel\na fine film \t1\n", GlueRow(("a fine film ",), 1)),
        ("mrpc", "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t2\t3\tone\ttwo\n", GlueRow(("one", "two"), 1)),
        ("cola", "l-93\t0\t*\tThem sleeps.\n", GlueRow(("Them sleeps.",), 0)),
        ("qnli", "index\tquestion\tsentence\tlabel\n0\tWho?\tHe.\tnot_entailment\n", GlueRow(("Who?", "He."), 1)),
        ("rte", PAIRS + "0\tone\ttwo\tentailment\n", GlueRow(("one", "two"), 0)),
        ("stsb", STSB + "0\tg\tf\ty\to\ts\ts\tone\ttwo\t2.75\n", GlueRow(("one", "two"), 2.75)),
        ("mnli", "sentence1\tsentence2\tlabel1\tgold_label\none\ttwo\tneutral\tcontradiction\n",
         GlueRow(("one", "two"), 2)),
        ("qqp", "qid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\tone\ttwo\t0\n", GlueRow(("one", "two"), 0)),
    ],
)  # fmt: skip
def test_every_task_reads_its_own_columns(tmp_path: Path, task: str, text: str, row: GlueRow) -> None:
    assert read_glue_file(_written(tmp_path, text), task) == [row]


def test_every_task_has_its_case_above() -> None:
    assert len(GLUE_TASKS) == 8


def test_quotes_and_odd_separators_do_not_merge_or_cut_rows(tmp_path: Path) -> None:
    text = PAIRS + '0\t"open\tb\u2028c\rd\tentailment\r\n1\tx"\ty\tnot_entailment\n'
    rows = read_glue_file(_written(tmp_path, text), "rte")
    assert rows == [GlueRow(('"open', "b\u2028c\rd"), 0), GlueRow(('x"', "y"), 1)]


@pytest.mark.parametrize(
    ("task", "text", "message"),
    [
        ("rte", "", "no rows"),
        ("rte", PAIRS, "no rows"),
        ("rte", "index\tsentence1\tsentence2\n0\ta\tb\n", r"rows.tsv \(line 1\) lacks \['label'\]"),
        ("rte", PAIRS + "0\ta\tb\tentailment\n1\ta\tentailment\n", "wrong number of columns: .*rows.tsv, line 3"),
        ("rte", PAIRS + "\n0\ta\tb\tmaybe\n", "label is not known: .*rows.tsv, line 3"),
        ("stsb", STSB + "0\tg\tf\ty\to\ts\ts\tone\ttwo\t5.5\n", "label is not known: .*rows.tsv, line 2"),
        ("stsb", STSB + "0\tg\tf\ty\to\ts\ts\tone\ttwo\tnan\n", "label is not known: .*rows.tsv, line 2"),
        ("cola", "source\tlabel\tmark\tsentence\n", "label is not known: .*rows.tsv, line 1"),
    ],
)
def test_unusable_files_are_refused_with_their_line(tmp_path: Path, task: str, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_glue_file(_written(tmp_path, text), task)


def test_missing_file_and_unknown_task_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing"):
        read_glue_file(tmp_path / "dev.tsv", "rte")
    with pytest.raises(ConfigError, match="not known"):
        read_glue_file(tmp_path / "dev.tsv", "wnli")


def test_other_encodings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_bytes(PAIRS.encode() + b"0\tcaf\xe9\tb\tentailment\n")
    with pytest.raises(DataError, match="not UTF-8"):
        read_glue_file(path, "rte")


@pytest.mark.parametrize(
    ("rows", "sizes"),
    [(872, (436, 436)), (408, (204, 204)), (1043, (522, 521)), (5463, (1000, 4463)), (277, (139, 138)), (2, (1, 1))],
)
def test_the_parts_have_the_sizes_of_the_paper(rows: int, sizes: tuple[int, int]) -> None:
    """Table 7 of arXiv 2604.11841, from the sizes of GLUE's validation sets."""
    assert tuple(map(len, cut_in_two(rows, seed=0))) == sizes


def test_parts_are_disjoint_complete_and_decided_by_the_seed() -> None:
    selection, reporting = cut_in_two(101, seed=0)
    assert (len(selection), len(reporting)) == (51, 50)
    assert sorted(selection + reporting) == list(range(101))
    assert cut_in_two(101, seed=0) == (selection, reporting)
    assert cut_in_two(101, seed=1) != (selection, reporting)
    with pytest.raises(DataError, match="cut in two"):
        cut_in_two(1, seed=0)


def _written(folder: Path, text: str) -> Path:
    path = folder / "rows.tsv"
    path.write_text(text, encoding="utf-8", newline="")
    return path
