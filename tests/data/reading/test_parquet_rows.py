"""Parquet files: what they hold comes back, and what they say of it opens nothing and takes nothing."""

from __future__ import annotations

import json
import resource
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pera_lightning.data.reading.parquet_rows import Unread
from pera_lightning.data.reading.parsed_row import Row
from pera_lightning.data.reading.row_files import dataset_rows, load_hub_dataset, read_rows
from pera_lightning.errors import DataError

pa = pytest.importorskip("pyarrow")
VALUE = {"dtype": "string", "_type": "Value"}


def saved(path: Path, columns: Any, features: Any = None, **options: Any) -> Path:
    import pyarrow.parquet

    table = pa.table(columns)
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pyarrow.parquet.write_table(table, path, **options)
    return path


def fields(path: Path) -> list[dict[str, Any]]:
    rows = list(read_rows(path))
    assert all(isinstance(row, Row) for row in rows)
    return [dict(row.fields) for row in rows if isinstance(row, Row)]


@pytest.fixture
def address() -> Iterator[tuple[str, list[bytes]]]:
    """Where somebody listens, and what came in."""
    calls: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                calls.append(connection.recv(100))
                connection.close()

        threading.Thread(target=answer, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/x", calls
        server.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("kind", ["Image", "Audio", "Video", "Pdf", "Nifti", "Mesh", "NoSuch", 5])
def test_features_in_a_file_open_nothing(kind: Any, tmp_path: Path, address: tuple[str, list[bytes]]) -> None:
    url, calls = address
    stored = pa.array([{"bytes": None, "path": url}], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    feature = {"_type": kind} if isinstance(kind, str) else kind
    path = saved(tmp_path / "a.parquet", {"picture": stored, "x": ["a"]}, {"picture": feature, "x": VALUE})
    (row,) = fields(path)
    assert row["x"] == "a"
    assert isinstance(row["picture"], Unread)
    assert "binary" in str(row["picture"])
    assert not calls


def test_features_of_a_data_set_open_nothing(
    tmp_path: Path, address: tuple[str, list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    stored = pa.array([{"bytes": None, "path": address[0]}], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    columns = {"picture": stored, "list": pa.array([[stored[0].as_py()]], pa.list_(stored.type)), "x": ["a"]}
    features = {"picture": {"_type": "Image"}, "list": [{"_type": "Image"}], "x": VALUE}
    saved(tmp_path / "set" / "train.parquet", columns, features)
    (row,) = dataset_rows("set", load_hub_dataset(str(tmp_path / "set"), None)["train"])
    assert row.fields == {"x": "a"}
    assert not address[1]


def test_all_kinds_of_columns_come_back(tmp_path: Path) -> None:
    messages = [[{"role": "user", "content": "hi"}], [], None]
    columns = {
        "dictionary": pa.array(["a", None, "a"]).dictionary_encode(),
        "large": pa.array(["ä", "b", "c"], pa.large_string()),
        "messages": pa.array(messages),
        "a.b": [1, 2, 3],
        "number": [1.5, None, -2.0],
        "flag": [True, False, None],
        "nothing": pa.nulls(3),
        "ids": [[1, 2], [3], []],
        "fixed": pa.array([[1, 2], [3, 4], None], pa.list_(pa.int64(), 2)),
        "inner": [{"x": {"y": ["z"]}}] * 3,
    }
    table = pa.table(columns)
    assert fields(saved(tmp_path / "a.parquet", columns)) == table.to_pylist()
    assert fields(saved(tmp_path / "b.parquet", columns, use_dictionary=False, row_group_size=2)) == table.to_pylist()
    dates = {"day": pa.array([2**30], pa.date32()), "long": pa.array([2**62], pa.duration("s")), "x": ["a"]}
    (row,) = fields(saved(tmp_path / "c.parquet", dates))
    assert row["x"] == "a"
    assert isinstance(row["day"], Unread)
    assert isinstance(row["long"], Unread)


def test_json_columns_hold_what_their_texts_say(tmp_path: Path) -> None:
    column = pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a": [1, "x"]}', None, "7"]))
    assert [row["x"] for row in fields(saved(tmp_path / "a.parquet", {"x": column}))] == [{"a": [1, "x"]}, None, 7]


def test_a_bad_value_costs_its_row(tmp_path: Path) -> None:
    bad = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"\xff\xfea")]
    )
    first, second = read_rows(saved(tmp_path / "a.parquet", {"x": bad}))
    assert isinstance(first, DataError)
    assert "row 1: a value cannot be read" in str(first)
    assert second == Row(f"{tmp_path / 'a.parquet'}, row 2", {"x": "a"})


def test_texts_that_repeat_are_unfolded_row_by_row(tmp_path: Path) -> None:
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 600, pa.int32()), pa.array(["x" * 1_000_000]))
    path = saved(tmp_path / "a.parquet", {"x": repeated}, compression="zstd")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"far more than its size[\s\S]*in the first 6\d rows"):
        list(_lengths(path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def _lengths(path: Path) -> Iterator[int]:
    return (len(row.fields["x"]) for row in read_rows(path) if isinstance(row, Row))


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"x": ["x" * 80_000_000]}, "that unpack to 80,000,0"),
        ({"x": pa.array([[None] * 11_000_000], pa.list_(pa.int8()))}, "11,000,000 values"),
        ({f"c{index}": [1] for index in range(1_001)}, "1,001 columns"),
        ({"x": pa.array([b"a"])}, r"no column that can be read[\s\S]*'x' of binary"),
        ({"x": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64()))}, "no column that can be read"),
        (pa.table({"x": [1]}).select([]), "no column"),
        (pa.Table.from_arrays([pa.array([1])] * 2, names=["x", "x"]), "a column twice"),
    ],
)
def test_what_is_beyond_the_bounds_is_refused_at_once(columns: Any, words: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.parquet", columns, compression="zstd", use_dictionary=False)
    with pytest.raises(DataError, match=words):
        read_rows(path)


def test_a_long_footer_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    with path.open("wb") as file:
        file.truncate(20 << 20)
        file.seek((20 << 20) - 8)
        file.write((17 << 20).to_bytes(4, "little") + b"PAR1")
    with pytest.raises(DataError, match="a footer of"):
        read_rows(path)
